"""RemotePolicy: a policy that is computed elsewhere."""

import operator
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi0_control.errors import CheckpointError, ConfigError, FrameError, ObservationError, RemoteError
from pi0_control.policy import check_observation
from pi0_control.policy.config import check_robot
from pi0_control.policy.images import resize_with_pad
from pi0_control.policy.policy import Noise, Prefixes
from pi0_control.robot import RobotSpec
from pi0_control.serving.codec import pack, unpack
from pi0_control.serving.link import Link
from pi0_control.serving.messages import (
    API_KEY_VARIABLE,
    MAX_SEED,
    Announcement,
    Request,
    WriteObservation,
    check_api_key,
    read_chunk,
    write_observation,
    write_request,
)
from pi0_control.types import ActionChunk, ChunkPrefix, Observation

REFUSALS = {error.__name__: error for error in (ObservationError, ConfigError, CheckpointError)}


class RemotePolicy:
    """Plays the policy of a server: ``pi0 serve``, or one of openpi's.

    A server of ours tells its robot and horizons. One of openpi's does not: they are arguments then, ``write`` makes
    what it expects, and ``seed``, ``noise`` and ``prefix`` do not reach it. ``infer`` answers or raises within the
    deadline; a reply that comes later is never taken for another. Images larger than the policy looks at are shrunk
    here as the policy would do it, which changes nothing but the traffic.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``.
        robot: the robot that will be driven; checked against the one the policy was made for.
        horizon: actions per chunk, where the server does not tell.
        execution_horizon: how many of them to play; what the server recommends, else the horizon.
        rates: joints whose actions are velocities or steps, where the server does not tell.
        deadline_s: how long ``infer`` may take, reconnections included.
        connect_s: how long to wait for a server that is not there yet.
        api_key: sent to the server; what the environment's ``PI0_API_KEY`` says if None.
        tls: what to trust for ``wss://``; the system's certificates if None.
        write: from observations to messages, for servers that name things differently.

    Raises:
        RemoteError: no server within ``connect_s``, it refuses, or it is not one that can be played.
        RobotMismatchError: made for another robot.
        ConfigError: an argument that does not fit, or is missing.
    """

    def __init__(
        self,
        url: str,
        *,
        robot: RobotSpec | None = None,
        horizon: int | None = None,
        execution_horizon: int | None = None,
        rates: Sequence[str] = (),
        deadline_s: float = 2.0,
        connect_s: float = 30.0,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        write: WriteObservation = write_observation,
    ) -> None:
        if not (deadline_s > 0 and connect_s > 0):
            raise ConfigError(f"deadline_s is {deadline_s} and connect_s {connect_s}; expected above zero.")
        api_key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
        if api_key:
            check_api_key(api_key)
        self.deadline_s = deadline_s
        self._write = write
        self._seed: int | None = None
        self._link = Link(url, {"Authorization": f"Api-Key {api_key}"} if api_key else {}, tls)
        try:
            self.metadata = _unpack(self._link.greet(connect_s), url)
            announced = Announcement.from_message(self.metadata)
            self._is_ours = announced is not None
            self._policy = _settle(announced, robot, horizon, execution_horizon, tuple(rates))
        except BaseException:
            self.close()
            raise

    @property
    def robot(self) -> RobotSpec:
        """The robot it drives."""
        return self._policy.robot

    @property
    def horizon(self) -> int:
        """Actions per chunk H."""
        return self._policy.horizon

    @property
    def execution_horizon(self) -> int:
        """How many of them to play before the next chunk."""
        return self._policy.execution_horizon

    @property
    def rates(self) -> tuple[str, ...]:
        """Joints whose actions are velocities or steps, 0 to stand still, and no positions."""
        return self._policy.rates

    def check(self, observation: Observation) -> None:
        """Raise ObservationError if the policy must not act upon the observation; asks nobody."""
        check_observation(observation, self.robot, self._policy.required_cameras, self.robot.cameras)

    def infer(self, observation: Observation, *, noise: Noise = None, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """The chunk for one observation.

        Its ``timing_ms`` has the server's stages, and ``remote`` for everything else the reply took.

        Args:
            observation: as the robot sees itself now.
            noise: replaces what the policy would draw.
            prefix: what the chunk should continue; a server of openpi's does not hear of it.

        Raises:
            ObservationError: here or there it is not as expected.
            RemoteError: no chunk within the deadline, or none that fits; the next call tries anew.
            ConfigError: noise for a server of openpi's, or what the policy says of prefix or noise.
        """
        started_s = time.perf_counter()
        self.check(observation)
        frame = self._frame(observation, noise, prefix)
        reply = self._link.exchange(frame, self.deadline_s)
        if isinstance(reply, str):
            raise _refusal(reply, self._link.url)
        chunk = read_chunk(_unpack(reply, self._link.url), observation, self._policy)
        self._seed = None
        remote_ms = 1000 * (time.perf_counter() - started_s) - sum(chunk.timing_ms.values())
        timing_ms = {**chunk.timing_ms, "remote": remote_ms}
        return ActionChunk(chunk.actions, chunk.start_s, chunk.dt_s, timing_ms, chunk.prompt)

    def infer_batch(
        self, observations: Sequence[Observation], *, noise: Noise = None, prefixes: Prefixes = None
    ) -> list[ActionChunk]:
        """One chunk per observation, one after the other, each within the deadline; ``noise`` as for a local policy."""
        prefixes = prefixes or [None] * len(observations)
        rows: list[NDArray[np.float32] | None] = [noise] * len(observations)
        if noise is not None and noise.ndim == 3:
            rows = list(noise)
        if not len(rows) == len(prefixes) == len(observations):
            raise ConfigError(
                f"Got {len(observations)} observations, {len(rows)} rows of noise and {len(prefixes)} prefixes; "
                "expected one each."
            )
        return [
            self.infer(observation, noise=row, prefix=prefix)
            for observation, row, prefix in zip(observations, rows, prefixes, strict=True)
        ]

    def reset(self, seed: int | None = None) -> None:
        """Start an episode; a seed goes to the server with the next observation, None lets its noise run on.

        Raises:
            ConfigError: the seed is no whole number from 0 to below 2^63.
        """
        if seed is None:
            return
        try:
            number = operator.index(seed)
        except TypeError:
            number = -1
        if not 0 <= number < MAX_SEED:
            raise ConfigError(f"The seed is {seed!r}; expected a whole number from 0 to below 2^63.")
        self._seed = number

    def close(self) -> None:
        """Leave the server."""
        self._link.close()

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _frame(self, observation: Observation, noise: Noise, prefix: ChunkPrefix | None) -> bytes:
        if not self._is_ours:
            if noise is not None:
                raise ConfigError("openpi's protocol has no noise; expected None.")
            return pack(self._write(observation))
        images = {name: self._shrink(image) for name, image in observation.images.items() if name in self.robot.cameras}
        small = Observation(images, observation.state, observation.prompt, observation.stamp_s)
        frame = pack(write_request(Request(small, prefix, noise, self._seed), self._write))
        longest = self._policy.max_frame_bytes
        if longest is not None and len(frame) > longest:
            raise ObservationError(f"The observation takes {len(frame)} bytes; expected {longest} at most.")
        return frame

    def _shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        size = self._policy.image_size
        return image if size is None or image.nbytes <= 3 * size**2 else resize_with_pad(image, size)


def _settle(
    announced: Announcement | None,
    robot: RobotSpec | None,
    horizon: int | None,
    execution_horizon: int | None,
    rates: tuple[str, ...],
) -> Announcement:
    """What is played, from what the server told and what was given.

    Raises:
        RobotMismatchError, ConfigError: they do not fit, or something is missing.
    """
    if announced is None:
        if robot is None or horizon is None:
            raise ConfigError("The server does not tell its robot and horizon; expected them as arguments.")
        announced = Announcement(robot, horizon, horizon, rates=rates)
    elif horizon not in (None, announced.horizon):
        raise ConfigError(f"The horizon is {horizon}; expected the server's {announced.horizon}.")
    elif rates and {*rates} != {*announced.rates}:
        raise ConfigError(f"The rates are {list(rates)}; expected the server's {list(announced.rates)}.")
    if robot is not None:
        check_robot(announced.robot, robot, announced.required_cameras)
    return replace(
        announced,
        robot=robot or announced.robot,
        execution_horizon=announced.execution_horizon if execution_horizon is None else execution_horizon,
    )


def _unpack(frame: bytes, url: str) -> dict[str, Any]:
    try:
        return unpack(frame)
    except FrameError as error:
        raise RemoteError(f"{url} sent no message of the protocol: {error}") from error


def _refusal(text: str, url: str) -> Exception:
    """What the server said went wrong; of a traceback its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["without a reason"]
    name, _, sentence = lines[-1].partition(": ")
    if len(lines) == 1 and name in REFUSALS:
        return REFUSALS[name](sentence)
    return RemoteError(f"{url} failed: {lines[-1]}")
