import dataclasses

import numpy as np
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


def test_stats_of_images() -> None:
    images = [np.full((6, 8, 3), (255, level, 0), np.uint8) for level in (0, 102)]
    seen = CameraStats.of(images)
    assert (seen.height, seen.width, seen.mean) == (6, 8, pytest.approx((1, 0.2, 0)))
    assert seen.red_over_blue == -CameraStats.of([image[..., ::-1] for image in images]).red_over_blue == 1


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
