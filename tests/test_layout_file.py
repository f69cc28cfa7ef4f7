import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gymnasium import spaces

from pi0_control.control import adapters
from pi0_control.control.layout_file import LAYOUTS, find_layout
from pi0_control.control.mapping import EnvironmentMapping
from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec

UR5E = RobotSpec.from_yaml("ur5e")
DEGREES: dict[str, Any] = {
    "pictures": {"base_rgb": "cam/front", "wrist_rgb": {"key": "cam/wrist", "layout": "chw", "is_rotated": True}},
    "state": [
        {"key": "joints", "joints": list(UR5E.joint_names[:6]), "scale": math.pi / 180},
        {"key": "grip", "joints": ["gripper", None], "conversion": "inverted_gripper"},
    ],
    "action": [{"joints": list(UR5E.joint_names), "scale": [math.pi / 180] * 6 + [0.5], "offset": 0}],
    "prompt": "pour",
    "is_clipped": False,
}
SPACE = spaces.Dict(
    {
        "joints": spaces.Box(-360, 360, (6,)),
        "grip": spaces.Box(0, 1, (2,)),
        "cam": spaces.Dict({"front": spaces.Box(0, 255, (4, 6, 3), np.uint8), "wrist": spaces.Box(0, 1, (3, 4, 6))}),
    }
)


def test_a_file_is_a_layout(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(DEGREES))
    mapping = EnvironmentMapping(
        find_layout(tmp_path / "mine.yaml"), UR5E, SPACE, spaces.Box(-360, 360, (7,), np.float32)
    )
    seen = SPACE.sample()
    mapped = mapping.observation(seen)
    expected = [*np.radians(seen["joints"]), 1 - seen["grip"][0]]
    np.testing.assert_allclose(mapped["state"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        mapped["images"]["wrist_rgb"][0, 0], np.rint(seen["cam"]["wrist"][:, -1, -1] * 255), atol=1
    )
    np.testing.assert_allclose(mapping.action([*np.radians(range(6)), 0.5]), [*range(6), 1.0], atol=1e-5)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_name_is_a_layout(name: str) -> None:
    assert find_layout(name) == LAYOUTS[name]()
    assert find_layout("droid_joint_position") == adapters.droid(control="joint_position")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, r"has \[.*'colour'.*expected \['action', 'pictures', 'state'\] and perhaps \['is_clipped'"),
        ({"state": {}}, r"has state \{\}; expected a list"),
        ({"pictures": []}, "expected a mapping"),
        ({"prompt": 3}, "expected a str"),
        ({"rates": "all"}, "expected a list"),
        ({"pictures": {"base_rgb": {"key": "a", "layout": "whc"}}}, "expected hwc or chw"),
        ({"pictures": {"base_rgb": {"key": "a", "is_rotated": "false"}}}, "is_rotated 'false'; expected a bool"),
        ({"pictures": {"base_rgb": {"key": 3}}}, "key 3; expected a str"),
        ({"state": [{"key": 3, "joints": ["a"]}]}, "key 3; expected a str"),
        ({"state": [{"key": "a"}]}, r"has \['key'\]; expected \['joints'\]"),
        ({"state": [{"joints": "a"}]}, "expected a list of names"),
        ({"state": [{"joints": ["a"], "conversion": "magic"}]}, r"'magic'; expected one of \['axis_angle'"),
        ({"state": [{"joints": ["a"], "conversion": "axis_angle", "scale": 2}]}, "instead scale and offset"),
        ({"state": [{"joints": ["a"], "scale": [1, 2]}]}, r"scale \[1, 2\]; expected a number"),
        ({"state": [{"joints": ["a"], "scale": 0}]}, "cannot be inverted"),
    ],
)
def test_a_file_is_read_strictly(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**DEGREES, **change}))
    with pytest.raises(ConfigError, match=words):
        find_layout(tmp_path / "mine.yaml")


def test_what_is_no_file_or_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No layout 'mars'; give a YAML file or one of \['aloha', 'droid'"):
        find_layout("mars")
    (tmp_path / "mine.yaml").write_text("{")
    with pytest.raises(ConfigError, match="is not YAML"):
        find_layout(tmp_path / "mine.yaml")
