import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.policy import (
    Pi0Policy,
    PolicyConfig,
)
from pi0_control.policy.config import LATER_FIELDS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_config_round_trip(policy: Pi0Policy, tmp_path: Path) -> None:
    config = dataclasses.replace(policy.config, provenance={"steps": 10, "data": "60 demonstrations, 4 tasks"})
    config.save(tmp_path / "policy.json")
    assert PolicyConfig.load(tmp_path / "policy.json") == config
    assert not {*LATER_FIELDS} & {*config.to_dict()}  # so that policies without them stay as they were
    later = {"rtc_max_delay": 3, "norm_rule": "lerobot", "rates": ("tool",), "uncommanded": ("gripper",)}
    config = dataclasses.replace(config, **later)
    config.save(tmp_path / "policy.json")
    assert PolicyConfig.load(tmp_path / "policy.json") == config
    assert config.commanded == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format_version 2 is unknown; expected 1"),
        ({"format_version": None}, "format_version None"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"norm": "median"}, "'median'"),
        ({"norm_rule": "mine"}, "'mine'"),
        ({"units": "aloha_pi"}, "14 joints"),
        ({"uncommanded": ["wing"]}, "uncommanded"),
        ({"uncommanded": [[]]}, "does not fit"),
        ({"uncommanded": ["waist"]}, r"delta_mask has \['waist'"),
        ({"rates": ["gripper"], "uncommanded": ["gripper"]}, r"rates has \['gripper'\]"),
        ({"norm_eps": 0}, "above zero"),
        ({"norm_eps": "small"}, "expected float"),
        ({"num_steps": 2.5}, "expected int"),
        ({"num_steps": 0}, "1 or more"),
        ({"rtc_max_delay": 6}, "0 to 5"),
        ({"execution_horizon": 7}, "1 to 6"),
        ({"discrete_state_input": True}, "prompt_format 'pi0'"),
        ({"discrete_state_input": 1}, "expected bool"),
        ({"pad_state_in_prompt": True}, "needs discrete_state_input"),
        ({"delta_mask": [True] * 6}, "expected 7 booleans"),
        ({"delta_mask": [False] * 7}, "joint_delta"),
        ({"delta_mask": "yes"}, "not a list"),
        ({"action_space": "joint_absolute"}, "joint_absolute"),
        ({"cameras": {"a": "base_0_rgb"}}, "num_cameras"),
        ({"cameras": {"a": "base_0_rgb", "b": None, "c": "top"}}, "expected distinct cameras"),
        ({"cameras": None}, "not an object"),
        ({"optional_cameras": ["top"]}, "optional_cameras"),
        ({"robot": {"name": "other"}}, "robot has"),
        ({"model": {}}, "expected exactly the keys"),
    ],
)
def test_a_config_is_strict(saved: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    values = json.loads((saved / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(CheckpointError, match=words):
        PolicyConfig.load(tmp_path / "policy.json")
    for key in values:
        with pytest.raises(ConfigError, match=key):
            PolicyConfig.from_dict({name: value for name, value in values.items() if name != key})
