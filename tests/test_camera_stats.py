import dataclasses

import pytest
from policy_parts import ARM6, TINY

from pi0_control.errors import ConfigError
from pi0_control.policy import PolicyConfig
from pi0_control.policy.camera_stats import CameraStats

SEEN = CameraStats(480, 640, (0.5, 0.25, 1.0))


def test_a_policy_config_keeps_what_its_cameras_showed() -> None:
    config = PolicyConfig.for_robot(ARM6, TINY)
    assert "camera_stats" not in config.to_dict()
    knowing = dataclasses.replace(config, camera_stats={"base_0_rgb": SEEN})
    assert PolicyConfig.from_dict(knowing.to_dict()) == knowing
    with pytest.raises(ConfigError, match=r"camera_stats are of \['top'\]; expected cameras of \['base_0_rgb'"):
        dataclasses.replace(config, camera_stats={"top": SEEN})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height and width are"),
        ({"width": True}, "expected two numbers of pixels"),
        ({"mean": [0.5, 0.5]}, "expected red, green and blue"),
        ({"mean": [0.5, 0.5, 2]}, "each 0 to 1"),
        ({"mean": 1}, "A camera's mean is 1"),
        ({"std": 1}, "expected ['height', 'width', 'mean']"),
    ],
)
def test_what_is_no_size_or_colour_is_refused(change, message) -> None:
    with pytest.raises(ConfigError) as caught:
        CameraStats.from_dict({**SEEN.to_dict(), **change})
    assert message in str(caught.value)
