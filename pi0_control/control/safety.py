"""Safety: the last word on every command. Limits, age of the inputs, holding still, latched faults.

No clock is read here: every question comes with the time ``now_s``, and the same questions give the same commands.

Distances are set as times at a joint's velocity limit, so one number suits radians, metres and gripper openings: 0.1 s
is 0.2 rad for a joint that may turn at 2 rad/s. A gripper that squeezes an object never gets where it is sent; so
whatever compares the commanded with the measured pose leaves grippers out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec
from pi0_control.types import Command, CommandStatus

Array = NDArray[np.float64]

TICK_S = 1e-6  # a clock that went on by less stands still
NO_LIMIT = 1e12  # finite, as 0 times infinity is not a number


@dataclass(frozen=True)
class SafetyConfig:
    """What Safety allows beyond the limits of the RobotSpec; times in seconds.

    Attributes:
        acceleration_time_s: from standstill to the velocity limit, for joints whose ``max_acceleration`` is not known.
        max_elapsed_steps: control periods that one command may make up for after a pause of the loop.
        max_jump_s: how far a command may be from the measured pose, in time at the velocity limit.
        near_s: within it the arm is where it was sent, and an action is near enough to be followed at full speed.
        soft_start_speed: fraction of the velocity limits while the arm is taken to an action that is not near.
        soft_start_after_s: a pause in tracking after which it starts softly again; and one in measuring, after which a
            joint that is not near where it was sent was moved by somebody else.
        limit_margin_s: how far outside its position limits a joint may be measured.
        max_tracking_error_s, tracking_fault_s: a fault once the arm is further than the first from where it was sent
            for longer than the second.
        max_state_age_s, max_camera_age_s, max_prompt_age_s: an older input makes the arm hold; None: any age will do.
        camera_ages_s: other limits than ``max_camera_age_s``, by camera.
        max_ahead_s: how far in the future a stamp may lie, for clocks that differ a little.
        max_inference_s: an inference under way for longer counts as failed.
        policy_fault_s: a fault once the policy has failed for longer; until then the arm holds.

    Raises:
        ConfigError: a value that is not above zero, or two that contradict each other.
    """

    acceleration_time_s: float = 0.1
    max_elapsed_steps: float = 2.0
    max_jump_s: float = 0.3
    near_s: float = 0.05
    soft_start_speed: float = 0.25
    soft_start_after_s: float = 1.0
    limit_margin_s: float = 0.05
    max_tracking_error_s: float = 0.2
    tracking_fault_s: float = 0.5
    max_state_age_s: float = 0.2
    max_camera_age_s: float = 0.5
    max_prompt_age_s: float | None = None
    camera_ages_s: Mapping[str, float] = field(default_factory=dict)
    max_ahead_s: float = 0.05
    max_inference_s: float = 2.0
    policy_fault_s: float = 5.0

    def __post_init__(self) -> None:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        del values["camera_ages_s"]
        if self.max_prompt_age_s is None:
            del values["max_prompt_age_s"]
        values |= {f"camera_ages_s[{name!r}]": age_s for name, age_s in self.camera_ages_s.items()}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value!r}; expected a finite number above zero.")
        if self.soft_start_speed > 1:
            raise ConfigError(f"soft_start_speed is {self.soft_start_speed}; expected at most 1, the full speed.")
        for name in ("near_s", "limit_margin_s", "max_tracking_error_s"):
            if not values[name] < self.max_jump_s:
                raise ConfigError(f"{name} is {values[name]}; expected less than max_jump_s, {self.max_jump_s}.")


class Safety:
    """Turns actions into commands that the robot may be given, one robot per instance.

    Every command is finite, inside the position limits, at most ``max_velocity`` times the time elapsed (never more
    than ``max_elapsed_steps`` control periods, nor than ``max_jump_s``) from the one before, and changes its velocity
    by at most the acceleration limit, with one exception: a joint never leaves its position limits in order to brake
    gently, which only a clock that jitters can ask for. The limiter brakes in time to stop at the action, so it adds no
    overshoot. The first command starts at the measured pose, and so does a joint that was moved while nobody measured
    it, such as by hand while its driver was restarted.

    Three states:

    - ``tracking``: the action, as far as the limits let it.
    - ``holding``: while an input is too old, not finite or missing, the clock does not go forward, the policy fails or
      no action is due. Joints that followed when last measured brake and stand where the commands stop: commanding the
      measured pose instead would let the arm sink by its sag at every hold, and the gripper drop what it holds. Joints
      that did not follow go to the last measured pose, captured when the hold began, and again whenever somebody has
      moved them further than ``max_tracking_error_s`` away. The first action after that which is not near, after
      ``soft_start_after_s``, is approached softly.
    - ``fault``: stands likewise, until :meth:`reset`. Caused by an action that is not finite or of the wrong shape, a
      state of the wrong shape or outside the position limits by more than ``limit_margin_s``, an arm that does not
      follow, and a policy that fails for ``policy_fault_s``.

    Whoever stops sending the commands and goes on later calls :meth:`reset` first: the arm may have been moved.

    A joint of ``rates`` is commanded by velocities or steps, such as a hand by its twist: its command starts at 0, is 0
    when standing, stays within plus and minus ``max_velocity`` and changes by at most the acceleration limit. Nothing
    compares it with the measured pose.

    Args:
        robot: whose limits to keep.
        config: the defaults if None.
        cameras: those that must be fresh; all of the robot's if None.
        rates: joints that are not commanded by positions.

    Raises:
        ConfigError: a camera or rate the robot does not have, or an age limit for a camera that is not watched.

    Attributes:
        inputs: the names that ``ages_s`` has to hold: ``state``, the cameras, ``prompt`` where its age is limited.
        fault: why there is a latched fault; empty without.
        reason: the reason of the last check, also where it gave no command.
    """

    def __init__(
        self,
        robot: RobotSpec,
        config: SafetyConfig | None = None,
        cameras: Iterable[str] | None = None,
        rates: Sequence[str] = (),
    ) -> None:
        self.robot = robot
        self.config = config = config or SafetyConfig()
        self._max_ages_s = _age_limits(robot, config, robot.cameras if cameras is None else tuple(cameras))
        self.inputs = tuple(self._max_ages_s)
        self._names = np.array(robot.joint_names)
        self._is_rate = _are_rates(robot, rates)
        speed = robot.max_velocity.astype(np.float64)
        lower, upper = robot.lower.astype(np.float64), robot.upper.astype(np.float64)
        self._outermost = lower - config.limit_margin_s * speed, upper + config.limit_margin_s * speed
        self._lower, self._upper = np.where(self._is_rate, -speed, lower), np.where(self._is_rate, speed, upper)
        acceleration = np.array(
            [joint.max_acceleration or joint.max_velocity / config.acceleration_time_s for joint in robot.joints]
        )
        self._acceleration = np.where(self._is_rate, NO_LIMIT, acceleration)  # of a rate: its jerk
        self._speed = np.where(self._is_rate, acceleration, speed)
        self._soft_speed = np.where(self._is_rate, acceleration, config.soft_start_speed * speed)
        reach = np.where(robot.gripper_mask | self._is_rate, np.inf, speed)  # compares a commanded and a measured pose
        self._jump, self._near = config.max_jump_s * reach, config.near_s * reach
        self._max_error = config.max_tracking_error_s * reach
        self._max_elapsed_s = min(config.max_elapsed_steps * robot.dt_s, config.max_jump_s)
        self.reset()

    def reset(self) -> None:
        """Forget everything, faults too: the next command is a first one again."""
        joints = len(self._names)
        self.fault = ""
        self.reason = ""
        self._last_s: float | None = None
        self._tracked_s = -math.inf  # when it was tracking last
        self._failing_s = 0.0
        self._astray_s = 0.0
        self._unseen_s = 0.0  # since the last good measured pose
        self._measured: Array | None = None  # last good one
        self._position: Array = np.full(joints, np.nan)  # last command, from the first good measured pose on
        self._velocity: Array = np.zeros(joints)
        self._follows = np.ones(joints, np.bool_)  # when last measured
        self._hold: tuple[Array, NDArray[np.bool_]] | None = None  # pose to go to, joints to brake instead
        self._is_soft = False

    def check(
        self,
        now_s: float,
        action: ArrayLike | None,
        state: ArrayLike | None,
        ages_s: Mapping[str, float],
        *,
        reason: str = "",
        policy_error: str = "",
        inference_s: float = 0.0,
    ) -> Command | None:
        """The command for this moment, whatever the inputs are.

        Args:
            now_s: the time, on the clock of the commands [s].
            action: [D], joint targets due now in the robot's units; None when none is.
            state: [D], the newest measured pose; None before the first.
            ages_s: how old the newest of each of :attr:`inputs` is [s]; leave out what has never come.
            reason: what the chunk player says to it, such as why there is no action.
            policy_error: why the policy gives no chunks, as long as it does not; empty when all is well.
            inference_s: how long the inference under way has been running [s].

        Returns:
            The command, stamped ``now_s``; None before the first good measured pose: none is invented.
        """
        dt_s, clock = self._tick(now_s)
        blind = self._observe(state, ages_s, dt_s)
        late = self._first_late(ages_s)
        failure = self._judge_policy(policy_error, inference_s, dt_s)
        idle = (reason or "no action is due") if action is None else ""
        target = None if action is None else self._judge_action(np.array(action, np.float64))
        self.reason = why = self.fault or clock or blind or late or failure or idle
        if self._measured is None:
            return None
        if why or target is None:
            self._stand(self._measured, dt_s)
        else:
            self.reason = self._track(target, self._measured, now_s, dt_s) or reason
        status: CommandStatus = "fault" if self.fault else "holding" if why else "tracking"
        margins = np.minimum(self._position - self._lower, self._upper - self._position)
        return Command(self._position.astype(np.float32), now_s, status, self.reason, margins.astype(np.float32))

    def _tick(self, now_s: float) -> tuple[float, str]:
        """Time that the limits may count on [s], and what is wrong with the clock."""
        if not math.isfinite(now_s):
            return 0.0, f"the clock reads {now_s}"
        elapsed_s = self.robot.dt_s if self._last_s is None else now_s - self._last_s
        if abs(elapsed_s) < TICK_S:
            return 0.0, "the clock stands still"
        self._last_s = now_s
        if elapsed_s < 0:
            return 0.0, f"the clock went back by {-elapsed_s:.3g} s"
        self._unseen_s += elapsed_s
        return min(elapsed_s, self._max_elapsed_s), ""

    def _observe(self, state: ArrayLike | None, ages_s: Mapping[str, float], dt_s: float) -> str:
        """Take in the measured pose; what is wrong with it."""
        if state is None:
            return "there is no measured state"
        measured = np.array(state, np.float64)
        if measured.shape != self._lower.shape:
            return self._latch(f"the state has shape {list(measured.shape)}; expected {list(self._lower.shape)}")
        if _any(~np.isfinite(measured)):
            return "the measured state is not finite"
        if late := self._late("state", ages_s):
            return late
        outside = (measured < self._outermost[0]) | (measured > self._outermost[1])
        if _any(outside):
            return self._latch(f"measured outside the position limits: {self._list(outside)}")
        if self._measured is None:
            self._position = self._pose(measured)
        elif self._unseen_s > self.config.soft_start_after_s:
            self._start_anew(measured)
        self._measured, self._unseen_s = measured, 0.0
        self._watch(np.abs(self._position - measured), dt_s)
        return ""

    def _start_anew(self, measured: Array) -> None:
        """From where they are, for joints that were moved while nobody measured them."""
        was_moved = np.abs(self._position - measured) > self._near
        if _any(was_moved):
            self._position = np.where(was_moved, self._pose(measured), self._position)
            self._velocity = np.where(was_moved, 0.0, self._velocity)
            self._hold, self._tracked_s = None, -math.inf

    def _watch(self, error: Array, dt_s: float) -> None:
        """Does the arm go where it is sent?"""
        self._follows = error <= self._near
        astray = error > self._max_error
        self._astray_s = self._astray_s + dt_s if _any(astray) else 0.0
        if self._astray_s > self.config.tracking_fault_s:
            self._latch(f"the arm does not follow the commands: {self._list(astray)}")

    def _first_late(self, ages_s: Mapping[str, float]) -> str:
        for name in self.inputs[1:]:
            if late := self._late(name, ages_s):
                return late
        return ""

    def _late(self, name: str, ages_s: Mapping[str, float]) -> str:
        age_s, limit_s = ages_s.get(name), self._max_ages_s[name]
        if age_s is None:
            return f"nothing has come from {name} yet"
        if -self.config.max_ahead_s <= age_s <= limit_s:
            return ""
        if age_s > limit_s:
            return f"the newest of {name} is {age_s:.2f} s old; the limit is {limit_s:g} s"
        return f"the newest of {name} has an age of {age_s:.2f} s; are the clocks in step?"

    def _judge_policy(self, error: str, inference_s: float, dt_s: float) -> str:
        limit_s = self.config.max_inference_s
        if not error and not inference_s <= limit_s:
            error = f"inference has been running for {inference_s:.2f} s; the limit is {limit_s:g} s"
        self._failing_s = self._failing_s + dt_s if error else 0.0
        if self._failing_s > self.config.policy_fault_s:
            self._latch(f"the policy has failed for {self._failing_s:.1f} s: {error}")
        return error

    def _judge_action(self, action: Array) -> Array | None:
        if action.shape != self._lower.shape:
            self._latch(f"the action has shape {list(action.shape)}; expected {list(self._lower.shape)}")
            return None
        if _any(astray := ~np.isfinite(action)):
            self._latch(f"the action is not finite: {self._list(astray)}")
            return None
        return action

    def _latch(self, reason: str) -> str:
        """The first fault stays, and where to stand is decided anew: what was held before may be the trouble."""
        if not self.fault:
            self.fault, self._hold = reason, None
        return self.fault

    def _stand(self, measured: Array, dt_s: float) -> None:
        """Brake the joints that follow; take the others to where they were measured when they were found astray."""
        if self._hold is None:
            self._hold = self._pose(measured), self._follows & ~self._is_rate
        pose, is_braked = self._hold
        astray = np.abs(self._position - measured) > self._max_error
        if _any(astray):  # moved by somebody else: stand where they are then, not where they were
            pose, is_braked = np.where(astray, self._pose(measured), pose), is_braked & ~astray
            self._hold = pose, is_braked
        if dt_s:
            velocity = self._approach(pose - self._position, self._soft_speed, dt_s)
            self._move(np.where(is_braked, 0.0, velocity), dt_s)

    def _track(self, action: Array, measured: Array, now_s: float, dt_s: float) -> str:
        """Move towards the action; why it is not reached."""
        wanted = _bound(action, self._lower, self._upper)
        if abs(now_s - self._tracked_s) > self.config.soft_start_after_s:
            self._is_soft = self._is_away(wanted, 1)
        elif self._is_soft:  # until caught up, at this speed
            self._is_soft = self._is_away(wanted, self.config.soft_start_speed)
        self._tracked_s, self._hold = now_s, None
        goal = _bound(wanted, measured - self._jump, measured + self._jump)
        speed = self._soft_speed if self._is_soft else self._speed
        self._move(self._approach(goal - self._position, speed, dt_s), dt_s)
        if self._is_soft:
            return "soft start towards an action that is not near"
        if _any(outside := wanted != action):
            return f"kept inside the limits: {self._list(outside)}"
        if _any(slowed := np.abs(wanted - self._position) > self._near):
            return f"slowed down to the limits: {self._list(slowed)}"
        return ""

    def _pose(self, measured: Array) -> Array:
        """The command that stands where the robot is."""
        return np.where(self._is_rate, 0.0, _bound(measured, self._lower, self._upper))

    def _is_away(self, wanted: Array, share: float) -> bool:
        return _any(np.abs(wanted - self._position) > share * self._near)

    def _approach(self, away: Array, speed: Array, dt_s: float) -> Array:
        """Velocity at which to go ``away`` [D], slow enough to stop there under the acceleration limit.

        In units of one period at the acceleration limit, n steps of velocity u, u - 1, ... down to above zero cover
        n u - n (n - 1) / 2. Solved for u, with twice the distance:
        """
        half_step = self._acceleration * (dt_s / 2)
        distance = np.abs(away) / (half_step * dt_s)
        n = np.floor(np.sqrt(distance + 0.25) + 0.5)
        return np.copysign(np.minimum((distance / n + (n - 1)) * half_step, speed), away)

    def _move(self, velocity: Array, dt_s: float) -> None:
        """One command on, at ``velocity`` [D] as far as acceleration and position limits let it."""
        step = self._acceleration * dt_s
        velocity = _bound(velocity, self._velocity - step, self._velocity + step)
        position = _bound(self._position + velocity * dt_s, self._lower, self._upper)
        self._velocity, self._position = (position - self._position) / dt_s, position

    def _list(self, chosen: NDArray[np.bool_]) -> str:
        return ", ".join(self._names[chosen])


def _any(chosen: NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(chosen))  # ndarray.any takes three times as long


def _bound(values: Array, lower: Array, upper: Array) -> Array:
    return np.minimum(np.maximum(values, lower), upper)  # np.clip takes three times as long


def _are_rates(robot: RobotSpec, rates: Sequence[str]) -> NDArray[np.bool_]:
    """Which joints [D] are commanded by rates."""
    if unknown := set(rates) - set(robot.joint_names):
        raise ConfigError(f"Robot {robot.name!r} has no joints {sorted(unknown)}; it has {list(robot.joint_names)}.")
    return np.isin(robot.joint_names, tuple(rates))


def _age_limits(robot: RobotSpec, config: SafetyConfig, cameras: tuple[str, ...]) -> dict[str, float]:
    """The oldest that each input may be [s], by name."""
    if unknown := set(cameras) - set(robot.cameras):
        raise ConfigError(f"Robot {robot.name!r} has no cameras {sorted(unknown)}; it has {list(robot.cameras)}.")
    if unwatched := set(config.camera_ages_s) - set(cameras):
        raise ConfigError(f"camera_ages_s has {sorted(unwatched)}; the cameras watched are {list(cameras)}.")
    limits = {"state": config.max_state_age_s}
    limits |= {name: config.camera_ages_s.get(name, config.max_camera_age_s) for name in cameras}
    return limits if config.max_prompt_age_s is None else limits | {"prompt": config.max_prompt_age_s}
