"""The newest message of every stream, how old it is, and whether a policy may act upon them together.

An age begins with how late a message was by the ROS clock when it came, and grows on a steady clock from there, so a
ROS clock that stands still or jumps makes nothing look fresh. No clock is read here. One thread puts, another looks.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi0_control.control import SafetyConfig
from pi0_control.errors import ObservationError
from pi0_control.robot import RobotSpec
from pi0_control.ros.reading import NS, hand_pose, image_format, joint_positions, rgb_image, to_ns
from pi0_control.types import Observation

STATE, POSE = "state", "ee_pose"


@dataclass(frozen=True)
class _Received:
    """A message; ``late_s`` by the ROS clock when it came at ``came_s``; its stamp was there again at ``again_s``.

    One that ``is_ahead``, stamped in the future, stays so: it gets no better by waiting.
    """

    message: Any
    stamp_ns: int
    late_s: float
    came_s: float
    again_s: float
    is_ahead: bool

    def age_s(self, now_s: float) -> float:
        if self.is_ahead:
            return self.late_s
        return self.late_s + max(now_s - self.came_s, 0.0)  # it may come after a tick has read its clock


@dataclass(frozen=True)
class Look:
    """All streams at one moment.

    Attributes:
        state: float32 [D]; None where the newest joint state cannot be used.
        ages_s: by stream, of those that sent anything [s].
        troubles: by stream or ``cameras``, in words; the policy may act only without any.
        stamp_ns: of the joint state.
    """

    state: NDArray[np.float32] | None
    ages_s: Mapping[str, float]
    troubles: Mapping[str, str]
    stamp_ns: int
    images: Mapping[str, Any]

    def observation(self, prompt: str) -> Observation:
        """For the policy, with the pixels; takes milliseconds where images are compressed.

        Raises:
            ObservationError: a compressed image cannot be decoded.
        """
        assert self.state is not None
        images = {}
        for name, message in self.images.items():
            try:
                images[name] = rgb_image(message)
            except ObservationError as error:
                raise ObservationError(f"{name}: {error}") from error
        return Observation(images, self.state, prompt, self.stamp_ns / NS)


class Inputs:
    """Keeps references to messages; what they hold is looked at when it is needed.

    Args:
        robot: its joints are looked for by name.
        cameras: those that must be there.
        limits: the ages that are allowed.
        max_skew_s: how far apart the cameras' stamps may be.
        pose_joints: those whose state is the pose of the hand, six; the others are looked for in joint states.
        frame: in which that pose is; empty for any.

    Attributes:
        streams: ``state``, ``ee_pose`` where it is used, and the cameras.
        counts: messages that came, by stream.
    """

    def __init__(
        self,
        robot: RobotSpec,
        cameras: Sequence[str],
        limits: SafetyConfig,
        max_skew_s: float,
        pose_joints: Sequence[str] = (),
        frame: str = "",
    ) -> None:
        others = [name for name in robot.joint_names if name not in pose_joints]
        self._parts: dict[str, tuple[list[int], Callable[[Any], NDArray[np.float32]]]] = {
            STATE: (_places(others, robot), partial(joint_positions, names=others))
        }
        if pose_joints:
            self._parts[POSE] = (_places(pose_joints, robot), partial(hand_pose, frame=frame))
        self.streams = (*self._parts, *cameras)
        self.counts: Counter[str] = Counter()
        self._joints, self._limits, self._max_skew_s = len(robot.joints), limits, max_skew_s
        self.clear("yet")
        self.accept_any_format()

    def put(self, name: str, message: Any, clock_ns: int, now_s: float) -> None:
        """A message has come.

        Args:
            name: of the stream.
            message: with a header; not to be changed any more.
            clock_ns: the ROS clock [ns].
            now_s: the steady clock [s].
        """
        self.counts[name] += 1
        newest = self._newest  # which another thread may clear meanwhile: then this is forgotten, too
        stamp_ns, last = to_ns(message.header.stamp), newest.get(name)
        if last is not None and last.stamp_ns == stamp_ns:
            newest[name] = replace(last, again_s=now_s)
        else:
            late_s = (clock_ns - stamp_ns) / NS
            is_ahead = late_s < -self._limits.max_ahead_s
            newest[name] = _Received(message, stamp_ns, late_s, now_s, now_s, is_ahead)

    def clear(self, since: str) -> None:
        """Forget all messages; ``since`` completes the sentence "nothing has come from it ..."."""
        self._newest: dict[str, _Received] = {}
        self._since = since

    def accept_any_format(self) -> None:
        """Cameras may have another size or encoding from now on; otherwise a change is refused."""
        self._formats: dict[str, str] = {}

    def look(self, now_s: float, keeps_formats: bool = True) -> Look:
        """All streams now, on the steady clock [s]; ``keeps_formats``: images are to stay as they are now."""
        newest = dict(self._newest)
        troubles = {name: trouble for name in self.streams if (trouble := self._late(name, newest.get(name), now_s))}
        images = {name: newest[name].message for name in self.streams if name in newest and name not in self._parts}
        state = self._state(newest, troubles)
        for name, message in images.items():
            if name not in troubles and (trouble := self._odd(name, message, keeps_formats)):
                troubles[name] = trouble
        if not troubles and (skew := self._skew({name: newest[name].stamp_ns for name in images})):
            troubles["cameras"] = skew
        ages_s = {name: received.age_s(now_s) for name, received in newest.items()}
        return Look(state, ages_s, troubles, newest[STATE].stamp_ns if STATE in newest else 0, images)

    def _state(self, newest: Mapping[str, _Received], troubles: dict[str, str]) -> NDArray[np.float32] | None:
        """The measured state, put together; what cannot be used goes to the troubles."""
        state = np.full(self._joints, np.nan, np.float32)
        for stream, (places, read) in self._parts.items():
            if stream in newest:
                try:
                    state[places] = read(newest[stream].message)
                except ObservationError as error:
                    troubles.setdefault(stream, f"{stream}: {error}")
        return state if np.isfinite(state).all() else None

    def _late(self, name: str, received: _Received | None, now_s: float) -> str:
        """What is wrong with the time of the newest of a stream."""
        limits = self._limits
        limit_s = limits.max_state_age_s if name in self._parts else limits.max_camera_age_s
        limit_s = limits.camera_ages_s.get(name, limit_s)
        if received is None:
            return f"nothing has come from {name} {self._since}"
        age_s, still_s = received.age_s(now_s), now_s - received.came_s
        if received.stamp_ns == 0:
            return f"{name} has a stamp of zero; expected the time it was taken at"
        if received.is_ahead:
            return f"{name} is stamped {-age_s:.2f} s in the future; are the clocks in step?"
        if age_s <= limit_s:
            return ""
        if still_s <= limit_s:
            return f"{name} comes {age_s:.2f} s late; the limit is {limit_s:g} s"
        if received.again_s > received.came_s and now_s - received.again_s <= limit_s:
            return f"{name} is frozen: it has repeated one stamp for {still_s:.2f} s; the limit is {limit_s:g} s"
        return f"{name} has been silent for {still_s:.2f} s; the limit is {limit_s:g} s"

    def _odd(self, name: str, message: Any, keeps_formats: bool) -> str:
        """What is wrong with an image as such, or as a successor of those before."""
        try:
            got = image_format(message)
        except ObservationError as error:
            return f"{name}: {error}"
        first = self._formats.get(name, got)
        if keeps_formats:
            self._formats[name] = first
        return "" if got == first else f"{name} has changed from {first!r} to {got!r}; disable and reset to accept it"

    def _skew(self, stamps_ns: Mapping[str, int]) -> str:
        """Which camera is behind the others, if too far."""
        oldest = min(stamps_ns, key=stamps_ns.__getitem__, default="")
        skew_s = (max(stamps_ns.values(), default=0) - stamps_ns.get(oldest, 0)) / NS
        if skew_s <= self._max_skew_s:
            return ""
        return f"{oldest} is {skew_s:.2f} s behind the other cameras; the limit is {self._max_skew_s:g} s"


def _places(names: Sequence[str], robot: RobotSpec) -> list[int]:
    return [robot.joint_names.index(name) for name in names]
