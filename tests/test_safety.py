from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pi0_control.control.safety import Safety, SafetyConfig
from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec
from pi0_control.types import Command

ROBOT = RobotSpec.from_yaml("arm6")
CONFIG = SafetyConfig()
DT_S = ROBOT.dt_s
HOME = ROBOT.home.astype(np.float64)
SPEED = ROBOT.max_velocity.astype(np.float64)
ACCELERATION = SPEED / CONFIG.acceleration_time_s
FRESH = dict.fromkeys(Safety(ROBOT).inputs, 0.0)
EPS = 1e-5  # commands are float32


class Arm:
    """A robot that does what it is told, with a clock; ``play`` is one control step."""

    def __init__(self, robot: RobotSpec = ROBOT, config: SafetyConfig | None = None) -> None:
        self.safety = Safety(robot, config)
        self.now_s = 10.0
        self.measured = robot.home.astype(np.float64)

    def play(self, action: Any, follows: bool = True, **inputs: Any) -> Command:
        self.now_s += DT_S
        inputs = {"ages_s": FRESH, "state": self.measured} | inputs
        command = self.safety.check(self.now_s, action, **inputs)
        assert command is not None
        if follows:
            self.measured = command.positions.astype(np.float64)
        return command

    def settle(self, action: Any, steps: int = 100, **inputs: Any) -> Command:
        return [self.play(action, **inputs) for _ in range(steps)][-1]


def moved(joint: int, distance: float) -> np.ndarray:
    pose = HOME.copy()
    pose[joint] += distance
    return pose


# Whatever comes in


@dataclass(frozen=True)
class Moment:
    elapsed_s: float
    action: Any
    state: Any
    ages_s: dict[str, float]
    policy_error: str


BAD = [np.nan, np.inf, -np.inf, 1e30, -1e30]
poses = st.lists(st.floats(-4, 4), min_size=7, max_size=7)
reachable = st.lists(st.floats(0, 1), min_size=7, max_size=7).map(
    lambda at: (ROBOT.lower + np.array(at) * (ROBOT.upper - ROBOT.lower)).tolist()
)
spoilt = st.builds(
    lambda pose, at, bad: [*pose[:at], bad, *pose[at + 1 :]], poses, st.integers(0, 6), st.sampled_from(BAD)
)
ages = st.one_of(
    st.just(FRESH),
    st.dictionaries(st.sampled_from(sorted(FRESH)), st.sampled_from([0.0, 0.1, 9.0, -1.0, np.nan])),
)
elapsed = st.one_of(st.just(DT_S), st.floats(0.005, 0.1), st.sampled_from([0.0, -3.0, 2.0, np.nan, np.inf]))


def moments(actions: st.SearchStrategy, states: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(Moment, elapsed, actions, states, ages, st.sampled_from(["", "", "", "lost"]))


good = moments(st.one_of(reachable, poses, st.none()), st.one_of(st.just("follows"), reachable, st.none()))
anything = moments(
    st.one_of(reachable, poses, spoilt, st.none()), st.one_of(st.just("follows"), poses, spoilt, st.none())
)
sequences = st.lists(st.one_of(good, good, anything), min_size=1, max_size=30)
PROPERTY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


class Played(NamedTuple):
    """A command with the time since the one before that the limits may count on; NaN but for joints ``found`` moved."""

    dt_s: float
    command: Command | None
    found: np.ndarray


def play(safety: Safety, sequence: list[Moment]) -> list[Played]:
    clock_s, last_s, seen_s, pose, played = 0.0, None, -np.inf, HOME, []
    for moment in sequence:
        now_s = clock_s + moment.elapsed_s
        state = pose if isinstance(moment.state, str) else moment.state
        command = safety.check(now_s, moment.action, state, moment.ages_s, policy_error=moment.policy_error)
        counted_s = 0.0
        if np.isfinite(now_s):
            counted_s = DT_S if last_s is None else min(max(now_s - last_s, 0.0), CONFIG.max_elapsed_steps * DT_S)
            if last_s is not None and now_s < last_s:
                seen_s -= last_s - now_s  # what was seen is as old as before
            clock_s = last_s = now_s
        found = np.full(7, np.nan)
        if is_good(state, moment.ages_s):
            if clock_s - seen_s > CONFIG.soft_start_after_s:
                at = np.clip(state, ROBOT.lower, ROBOT.upper)
                found = np.where((np.abs(pose - state) > CONFIG.near_s * SPEED) & ~ROBOT.gripper_mask, at, np.nan)
            seen_s = clock_s
        if command is not None:
            pose = command.positions.astype(np.float64)
        played.append(Played(counted_s, command, found))
    return played


def is_good(state: Any, ages_s: dict[str, float]) -> bool:
    if state is None or not np.isfinite(state).all() or not 0 <= ages_s.get("state", np.nan) <= CONFIG.max_state_age_s:
        return False
    margin = CONFIG.limit_margin_s * SPEED
    return bool(((ROBOT.lower - margin <= state) & (state <= ROBOT.upper + margin)).all())


@PROPERTY
@given(sequences)
def test_every_command_keeps_every_limit(sequence: list[Moment]) -> None:
    position = velocity = None
    for dt_s, command, found in play(Safety(ROBOT), sequence):
        if command is None:
            assert position is None  # once there is a pose there is a command
            continue
        positions = command.positions.astype(np.float64)
        assert command.positions.dtype == np.float32
        assert ((command.positions >= ROBOT.lower) & (command.positions <= ROBOT.upper)).all()  # finite, too
        np.testing.assert_allclose(
            command.margins, np.minimum(positions - ROBOT.lower, ROBOT.upper - positions), atol=EPS
        )
        if position is not None:
            position = np.where(np.isnan(found), position, found)
            if velocity is not None:
                velocity = np.where(np.isnan(found), velocity, 0.0)
            step = positions - position
            assert (np.abs(step) <= np.minimum(SPEED * dt_s, CONFIG.max_jump_s * SPEED) + EPS).all()
            if dt_s:
                if velocity is not None:
                    at_limit = command.margins < EPS  # where braking may be harder
                    change = np.abs(step / dt_s - velocity)
                    assert (at_limit | (change <= ACCELERATION * dt_s + EPS / dt_s)).all()
                velocity = step / dt_s
        position = positions


@PROPERTY
@given(sequences)
def test_a_fault_stays_and_a_reset_forgets_everything(sequence: list[Moment]) -> None:
    used = Safety(ROBOT)
    statuses = [command.status for _, command, _ in play(used, sequence) if command]
    if "fault" in statuses:
        assert set(statuses[statuses.index("fault") :]) == {"fault"}
    if any(m.action is not None and not np.isfinite(m.action).all() for m in sequence):
        assert used.fault
    assert not used.fault or used.reason == used.fault
    used.reset()
    for (_, again, _), (_, fresh, _) in zip(play(used, sequence), play(Safety(ROBOT), sequence), strict=True):
        assert (again is None) == (fresh is None)
        if again and fresh:
            assert again.positions.tobytes() == fresh.positions.tobytes()
            assert (again.status, again.reason) == (fresh.status, fresh.reason)


@settings(PROPERTY, max_examples=25)
@given(sequences, st.lists(st.floats(0.03, 0.1), min_size=1, max_size=5))
def test_a_hold_comes_to_rest_and_never_moves_again(sequence: list[Moment], periods: list[float]) -> None:
    safety = Safety(ROBOT)
    play(safety, [*sequence, Moment(DT_S, None, HOME.tolist(), FRESH, "")])
    now_s = 1e6
    commands = []
    for index in range(400):
        now_s += periods[index % len(periods)]
        commands.append(safety.check(now_s, None, None, FRESH).positions)
    assert (np.abs(commands[-1] - np.array(commands[-40:])) <= EPS).all()


# Commands that are velocities or steps


RATES = ROBOT.joint_names[:3]


@PROPERTY
@given(sequences)
def test_rates_keep_their_limits_and_stand_at_zero(sequence: list[Moment]) -> None:
    safety = Safety(ROBOT, rates=RATES)
    last = np.zeros(3)
    for dt_s, command, _ in play(safety, sequence):
        if command is not None:
            rates = command.positions[:3].astype(np.float64)
            assert (np.abs(rates) <= SPEED[:3] + EPS).all()
            assert (np.abs(rates - last) <= ACCELERATION[:3] * dt_s + EPS).all()
            last = rates
    for step in range(10):
        command = safety.check(1e6 + step * DT_S, None, HOME, FRESH)
        assert command is not None
    assert (np.abs(command.positions[:3]) < 1e-9).all()


@PROPERTY
@given(st.lists(st.floats(0.005, 0.2), min_size=1, max_size=30))
def test_a_rate_goes_straight_to_what_is_asked_for_however_long_the_periods_are(periods_s: list[float]) -> None:
    safety = Safety(ROBOT, rates=RATES)
    wanted = np.array([0.9, -0.5, 0]) * SPEED[:3]
    now_s, rates = 0.0, np.zeros(3)
    for counted_s in [DT_S, *np.minimum(periods_s, CONFIG.max_elapsed_steps * DT_S)]:
        now_s += counted_s
        rates += np.clip(wanted - rates, -ACCELERATION[:3] * counted_s, ACCELERATION[:3] * counted_s)
        command = safety.check(now_s, np.r_[wanted, HOME[3:]], HOME, FRESH)
        assert command is not None
        np.testing.assert_allclose(command.positions[:3], rates, atol=EPS)


def test_a_rate_is_not_compared_with_the_measured_pose() -> None:
    arm = Arm()
    arm.safety = Safety(ROBOT, rates=RATES)
    arm.measured = moved(0, 1.5)
    action = np.r_[0.3, -0.2, 0.1, HOME[3:]]
    command = arm.settle(action, follows=False)
    np.testing.assert_allclose(command.positions[:3], action[:3], atol=EPS)
    assert (command.status, command.reason) == ("tracking", "")
    with pytest.raises(ConfigError, match=r"no joints \['tail'\]"):
        Safety(ROBOT, rates=("tail",))


# Tracking


def test_a_motion_the_robot_can_make_is_not_changed() -> None:
    arm = Arm()
    for step in range(200):
        action = HOME + 0.15 * (1 - np.cos(2 * np.pi * step / 40)) * (SPEED / 4)
        action = np.clip(action, ROBOT.lower, ROBOT.upper)
        command = arm.play(action)
        assert (command.status, command.reason) == ("tracking", "")
        np.testing.assert_allclose(command.positions, action, atol=EPS)


def test_a_far_action_is_approached_softly_first_and_at_the_velocity_limit_later_without_overshoot() -> None:
    arm = Arm()
    poses = [arm.play(moved(0, 1.0)).positions[0] for _ in range(100)]
    assert np.diff(poses).max() == pytest.approx(CONFIG.soft_start_speed * SPEED[0] * DT_S, abs=EPS)
    assert max(poses) == poses[-1] == pytest.approx(1.0, abs=EPS)
    assert np.diff(poses).min() > -EPS
    command = arm.play(HOME)
    assert command.reason == "slowed down to the limits: waist"
    back = [arm.play(HOME).positions[0] for _ in range(100)]
    assert np.diff(back).min() == pytest.approx(-SPEED[0] * DT_S, abs=EPS)
    assert min(back) == pytest.approx(0.0, abs=EPS)


def test_the_acceleration_of_the_robot_file_counts() -> None:
    joints = tuple(replace(joint, max_acceleration=1.0) for joint in ROBOT.joints)
    arm = Arm(replace(ROBOT, joints=joints))
    poses = [HOME[0], *(arm.play(moved(0, 0.5)).positions[0] for _ in range(100))]
    assert np.abs(np.diff(poses, 2)).max() == pytest.approx(1.0 * DT_S**2, abs=EPS)
    assert poses[-1] == pytest.approx(0.5)


def test_actions_outside_the_limits_stop_at_them() -> None:
    arm = Arm()
    command = arm.settle(moved(0, 9.0), 120)
    assert command.positions[0] == ROBOT.upper[0]
    assert command.margins[0] == 0
    assert command.reason == "kept inside the limits: waist"


def test_a_pose_just_outside_the_limits_comes_back_in() -> None:
    arm = Arm()
    arm.measured[0] = ROBOT.upper[0] + 0.05
    assert arm.play(None).positions[0] == ROBOT.upper[0]
    assert arm.settle(HOME, 120).positions[0] == pytest.approx(HOME[0], abs=EPS)


def test_a_command_stays_within_a_jump_of_the_measured_pose() -> None:
    arm = Arm(config=SafetyConfig(tracking_fault_s=99))
    command = arm.settle(moved(0, 2.0), follows=False)
    assert command.positions[0] == pytest.approx(CONFIG.max_jump_s * SPEED[0])


# Holding


def test_without_a_measured_pose_there_is_no_command() -> None:
    safety = Safety(ROBOT)
    assert safety.check(0.0, HOME, None, FRESH) is None
    assert safety.reason == "there is no measured state"
    assert safety.check(0.1, HOME, HOME * np.nan, FRESH) is None
    assert safety.check(0.2, HOME, HOME, FRESH | {"state": 9.0}) is None
    np.testing.assert_array_equal(safety.check(0.3, None, HOME, FRESH).positions, ROBOT.home)


CAMERA = ROBOT.cameras[0]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"action": None, "reason": "The chunk is used up."}, "The chunk is used up."),
        ({"action": None}, "no action is due"),
        ({"state": None}, "there is no measured state"),
        ({"state": HOME * np.nan}, "the measured state is not finite"),
        ({"ages_s": FRESH | {"state": 0.3}}, "the newest of state is 0.30 s old; the limit is 0.2 s"),
        ({"ages_s": FRESH | {CAMERA: 2.0}}, f"the newest of {CAMERA} is 2.00 s old; the limit is 0.5 s"),
        ({"ages_s": FRESH | {CAMERA: -1.0}}, f"the newest of {CAMERA} has an age of -1.00 s; are the clocks in step?"),
        ({"ages_s": {"state": 0.0}}, f"nothing has come from {CAMERA} yet"),
        ({"policy_error": "The server is gone."}, "The server is gone."),
        ({"inference_s": 2.5}, "inference has been running for 2.50 s; the limit is 2 s"),
    ],
)
def test_what_is_missing_is_said_and_the_arm_goes_on_when_it_is_back(inputs, reason) -> None:
    arm = Arm()
    arm.settle(HOME, 3)
    command = arm.play(**{"action": HOME} | inputs)
    assert (command.status, command.reason) == ("holding", reason)
    np.testing.assert_array_equal(command.positions, ROBOT.home)
    assert arm.play(HOME).status == "tracking"


def test_every_input_has_an_age_limit_of_its_own() -> None:
    config = SafetyConfig(camera_ages_s={CAMERA: 3.0}, max_prompt_age_s=60.0)
    safety = Safety(ROBOT, config, cameras=[CAMERA])
    assert safety.inputs == ("state", CAMERA, "prompt")
    command = safety.check(0.0, HOME, HOME, {"state": 0.0, CAMERA: 2.0, "prompt": 61.0})
    assert command.reason == "the newest of prompt is 61.00 s old; the limit is 60 s"


def test_a_hold_in_full_motion_brakes_at_the_acceleration_limit() -> None:
    arm = Arm()
    poses = [arm.play(moved(0, SPEED[0] * DT_S * step)).positions[0] for step in range(20)]
    poses += [arm.play(None).positions[0] for _ in range(10)]
    assert (np.diff(poses) >= -EPS).all()
    assert np.abs(np.diff(poses, 2)).max() <= ACCELERATION[0] * DT_S**2 + EPS
    assert poses[-1] == poses[-5]


def test_holds_do_not_let_a_sagging_arm_sink_nor_follow_noise() -> None:
    arm, rng = Arm(), np.random.default_rng(0)
    commands = []
    for _ in range(50):
        sagging = HOME - [0, 0.02, 0.02, 0, 0, 0, 0] + rng.normal(0, 0.002, 7)
        commands.append(arm.play(HOME, state=sagging).positions)
        commands.append(arm.play(None, state=sagging).positions)
    assert (np.array(commands[10:]) == commands[10]).all()


def test_a_joint_that_did_not_follow_is_held_where_it_was_measured_and_the_gripper_keeps_its_grip() -> None:
    arm = Arm()
    arm.settle(moved(6, -1.0))  # the gripper shuts
    blocked = arm.measured.copy()
    blocked[6] = 0.5  # upon an object
    for _ in range(8):
        arm.play(moved(6, -1.0) + [0.4, 0, 0, 0, 0, 0, 0], state=blocked, follows=False)
    command = arm.settle(None, state=blocked, follows=False)
    np.testing.assert_allclose(command.positions, [*blocked[:6], 0.0], atol=EPS)


def test_after_a_long_hold_a_far_action_is_approached_softly_after_a_short_one_not() -> None:
    for pause, speed in ((2, SPEED[0]), (40, CONFIG.soft_start_speed * SPEED[0])):
        arm = Arm()
        arm.settle(HOME, 5)
        arm.settle(None, pause)
        poses = [arm.play(moved(0, 1.5)).positions[0] for _ in range(20)]
        assert np.diff(poses).max() == pytest.approx(speed * DT_S, abs=EPS)


@pytest.mark.parametrize(
    ("now_s", "reason"),
    [(3.0, "the clock went back by 7.3 s"), (10.3, "the clock stands still"), (np.nan, "the clock reads nan")],
)
def test_a_clock_that_does_not_go_forward_holds(now_s, reason) -> None:
    arm = Arm()
    arm.settle(HOME, 6)
    command = arm.safety.check(now_s, moved(0, 1.0), HOME, FRESH)
    assert (command.status, command.reason) == ("holding", reason)
    np.testing.assert_array_equal(command.positions, ROBOT.home)
    assert arm.safety.check(10.4, HOME, HOME, FRESH).status == "tracking"


# Faults


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"action": moved(2, np.nan)}, "the action is not finite: elbow"),
        ({"action": HOME[:6]}, r"the action has shape [6]; expected [7]"),
        ({"state": HOME[:6]}, r"the state has shape [6]; expected [7]"),
        ({"state": moved(1, 2.0)}, "measured outside the position limits: shoulder"),
    ],
)
def test_a_fault_stands_until_reset(inputs, reason) -> None:
    arm = Arm()
    arm.settle(HOME, 3)
    for command in (arm.play(**{"action": HOME} | inputs), arm.settle(HOME)):
        assert (command.status, command.reason) == ("fault", reason)
        np.testing.assert_array_equal(command.positions, ROBOT.home)
    arm.safety.reset()
    assert arm.play(HOME).status == "tracking"


def test_a_robot_first_measured_far_outside_its_limits_is_not_moved() -> None:
    safety = Safety(ROBOT)
    assert safety.check(0.0, HOME, moved(0, 9.0), FRESH) is None
    assert safety.fault == safety.reason == "measured outside the position limits: waist"


def test_an_arm_that_does_not_follow_is_a_fault_and_is_relieved() -> None:
    arm = Arm()
    arm.settle(HOME, 3)
    commands = [arm.play(moved(0, 1.0), follows=False) for _ in range(60)]
    assert commands[-1].reason == "the arm does not follow the commands: waist"
    first = [command.status for command in commands].index("fault")
    assert (first + 1) * DT_S > CONFIG.tracking_fault_s
    np.testing.assert_allclose(commands[-1].positions, ROBOT.home, atol=EPS)


@pytest.mark.parametrize("pause", [{"state": None}, {"ages_s": FRESH | {"state": 9.0}}, "no calls"], ids=str)
def test_a_joint_that_was_moved_while_nobody_measured_it_is_commanded_from_where_it_is(pause: Any) -> None:
    arm = Arm()
    arm.settle(moved(6, -1.0))  # the gripper shuts
    if pause == "no calls":
        arm.now_s += 30.0
    else:
        arm.settle(HOME, 40, follows=False, **pause)
    arm.measured = moved(0, 1.0) - [0, 0, 0.02, 0, 0, 0, 0]  # by hand, and another sags; the gripper has slipped
    commands = [arm.play(moved(0, 1.5)) for _ in range(20)]
    poses = np.array([command.positions for command in commands], np.float64)
    periods = np.where(np.arange(20) == 0, CONFIG.max_elapsed_steps, 1)
    steps = np.abs(np.diff(poses[:, 0], prepend=HOME[0] + 1.0))
    assert (steps <= CONFIG.soft_start_speed * SPEED[0] * DT_S * periods + EPS).all()
    assert poses[0, 2] == pytest.approx(HOME[2])
    assert poses[0, 6] < 0.2  # from where it was sent, not from where it was measured, 1
    assert commands[0].reason.startswith("soft start")


@pytest.mark.parametrize(
    "inputs", [{"action": None}, {"action": HOME, "ages_s": {"state": 0.0}}], ids=["idle", "blind"]
)
def test_an_arm_that_is_moved_in_a_hold_is_commanded_to_where_it_is(inputs: dict[str, Any]) -> None:
    arm, errors = Arm(config=SafetyConfig(tracking_fault_s=0.5)), []
    arm.settle(HOME, 10)
    for step in range(200):
        arm.measured = moved(0, min(step * DT_S * 0.5, 2.0))  # by hand, at a quarter of its speed
        command = arm.play(follows=False, **inputs)
        errors.append(abs(command.positions[0] - arm.measured[0]))
    assert max(errors) <= CONFIG.max_jump_s * SPEED[0]
    assert errors[-1] < CONFIG.max_tracking_error_s * SPEED[0]
    assert arm.play(moved(0, 2.0)).status in ("tracking", "fault")


def test_a_policy_that_fails_for_long_is_a_fault() -> None:
    arm = Arm()
    arm.settle(HOME, 3)
    steps = round(CONFIG.policy_fault_s / DT_S)
    assert arm.settle(None, steps - 1, policy_error="lost").status == "holding"
    assert arm.play(HOME).status == "tracking"
    assert arm.settle(None, steps - 1, inference_s=3.0).status == "holding"
    command = arm.settle(None, 2, policy_error="lost")
    assert (command.status, command.reason) == ("fault", "the policy has failed for 5.0 s: lost")


# Configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_jump_s": 0}, "max_jump_s is 0; expected a finite number above zero"),
        ({"policy_fault_s": float("inf")}, "policy_fault_s is inf; expected a finite"),
        ({"max_state_age_s": None}, "max_state_age_s is None; expected a finite"),
        ({"camera_ages_s": {"top": -1}}, r"camera_ages_s\['top'\] is -1; expected a finite"),
        ({"soft_start_speed": 2}, "soft_start_speed is 2; expected at most 1"),
        ({"max_tracking_error_s": 0.3}, "max_tracking_error_s is 0.3; expected less than max_jump_s, 0.3"),
    ],
)
def test_wrong_settings_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SafetyConfig(**settings)


def test_unknown_cameras_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no cameras \['top'\]; it has"):
        Safety(ROBOT, cameras=["top"])
    with pytest.raises(ConfigError, match=r"camera_ages_s has \['top'\]; the cameras watched are"):
        Safety(ROBOT, SafetyConfig(camera_ages_s={"top": 1.0}))
