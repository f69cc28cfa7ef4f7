import numpy as np
import pytest
from counting_policy import ARM6

from pi0_control.types import Command
from sims.smoothness import Smoothness, SmoothnessMeter

DT_S = ARM6.dt_s
STILL = Command(ARM6.home, 0.0)


def measured(actions: np.ndarray) -> Smoothness:
    meter = SmoothnessMeter(ARM6)
    for action in actions:
        meter.add(action, [STILL], [None])
    return meter.result()


def test_the_jerk_is_the_third_derivative_and_the_gripper_has_none() -> None:
    times_s = np.arange(12) * DT_S
    cubic = np.zeros((12, 7))
    cubic[:, 0] = 2 * times_s**3  # jerk 12 in one of six joints
    cubic[:, 6] = np.arange(12) % 2
    assert measured(cubic).jerk_rad_s3 == pytest.approx(12 / np.sqrt(6))
    parabola = np.repeat(times_s[:, None] ** 2, 7, axis=1)
    assert measured(parabola).jerk_rad_s3 == pytest.approx(0, abs=1e-9)
    assert measured(cubic[:3]) == Smoothness()


def test_seams_are_of_the_joint_that_jumps_most_and_holds_add_up() -> None:
    meter = SmoothnessMeter(ARM6)
    jumps = np.array([0.1, 0, 0.3, 0, 0, 0, 0.9], np.float32)  # the last is the gripper
    for jump, status in ((None, "holding"), (jumps, "tracking"), (None, "fault"), (jumps / 3, "tracking")):
        meter.add(ARM6.home, [Command(ARM6.home, 0.0, status)], [jump])
    result = meter.result()
    assert result.seams_rad == pytest.approx((0.3, 0.1))
    assert result.hold_s == pytest.approx(2 * DT_S)
