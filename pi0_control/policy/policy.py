"""Policies: observations in, chunks of joint targets out."""

import copy
import time as clock
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.files import write_file
from pi0_control.model.checkpoints import save_weights
from pi0_control.model.fast import FastSampler
from pi0_control.model.graph import GraphSampler
from pi0_control.model.pi0 import Pi0
from pi0_control.model.sampler import sample_noise
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.norm_stats import NormStats
from pi0_control.policy.pretrained import CONFIG_FILE, STATS_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Given, read_policy
from pi0_control.policy.rtc import RtcConfig, steer
from pi0_control.policy.tokenizer import Tokenizer
from pi0_control.policy.transforms import PolicyTransforms, check_observation
from pi0_control.robot import RobotSpec
from pi0_control.types import ActionChunk, ChunkPrefix, Observation

FLOAT8 = "float8"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, FLOAT8: torch.bfloat16}  # of the weights
SMALL = 100e6  # parameters; mini has 2.6 million
Noise = NDArray[np.float32] | None
Prefixes = Sequence[ChunkPrefix | None] | None


class Policy(Protocol):
    """What plays in an agent or a node: anything that answers an observation with a chunk of actions."""

    @property
    def robot(self) -> RobotSpec:
        """The robot it drives."""

    @property
    def horizon(self) -> int:
        """Actions per chunk H."""

    @property
    def execution_horizon(self) -> int:
        """How many of them to play before the next chunk, as the policy's maker recommends."""

    @property
    def rates(self) -> tuple[str, ...]:
        """Joints whose actions are velocities or steps, 0 to stand still, and no positions."""

    def check(self, observation: Observation) -> None:
        """Raise ObservationError if the policy must not act upon the observation; cheap, as it is asked every step."""

    def infer(self, observation: Observation, *, noise: Noise = None, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """The chunk for one observation.

        Args:
            observation: as the robot sees itself now.
            noise: replaces what a stochastic policy would draw.
            prefix: what the chunk should continue (real-time chunking); a policy that cannot may ignore it.
        """

    def infer_batch(
        self, observations: Sequence[Observation], *, noise: Noise = None, prefixes: Prefixes = None
    ) -> list[ActionChunk]:
        """One chunk per observation, computed together; ``prefixes`` has one entry per observation."""

    def reset(self, seed: int | None = None) -> None:
        """Start an episode; a seed restarts the noise, None lets it run on."""


class Pi0Policy:
    """A trained π0, π0.5 or ``mini`` with its pre- and post-processing.

    The noise comes from a generator of the policy's own on the CPU, so a seed gives the same actions on any device up
    to rounding.

    Args:
        model: the network; moved to ``device`` and cast to ``dtype`` in place.
        config: its ``model`` part is the network's configuration.
        norm_stats, tokenizer: as for :class:`PolicyTransforms`.
        device: a torch device such as ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16``, or ``float8``: bfloat16 but for the products of the prefix, less exact. A CPU
            that multiplies bfloat16 then holds the layers' matrices twice, as they are and as its kernels want them.
        rtc: how it continues the prefix that :meth:`infer` is given; guided if None.

    Raises:
        ConfigError: the parts do not fit together, or there is no such device or dtype, or not on that device.
    """

    def __init__(
        self,
        model: Pi0,
        config: PolicyConfig,
        norm_stats: NormStats,
        tokenizer: Tokenizer,
        device: str = "cpu",
        dtype: str = "float32",
        rtc: RtcConfig | None = None,
    ) -> None:
        if model.config != config.model:
            raise ConfigError("The network was built with another configuration than the policy's 'model' part.")
        self.config = config
        self.rtc = rtc or RtcConfig()
        self.rtc.check(config)
        self.robot = config.robot
        self.transforms = PolicyTransforms(config, norm_stats, tokenizer)
        self.device = resolve_device(device)
        self.model = model.cast(_torch_dtype(dtype)).to(self.device).eval()
        steps, float8 = config.num_steps, dtype == FLOAT8
        self._sample: GraphSampler | FastSampler
        if self.device.type == "cuda":
            self._sample = GraphSampler(self.model, steps, float8=float8)
        else:
            self._sample = FastSampler(self.model, steps, packs=dtype != "float32", float8=float8)
        self._generator = torch.Generator().manual_seed(0)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        robot: RobotSpec | None = None,
        rtc: RtcConfig | None = None,
        policy_config: Given = None,
        asset: str | None = None,
        tokenizer: str | Path | None = None,
    ) -> "Pi0Policy":
        """Load a bundled policy by name, or a directory of ours, openpi's (PyTorch or JAX) or LeRobot's by path.

        Args:
            name: for example ``mini``, a directory, or ``org/name`` on the Hugging Face hub.
            device, dtype: as in the constructor.
            robot: the robot that will be driven; checked against the one the policy was made for.
            rtc: as in the constructor.
            policy_config, asset, tokenizer: what a public checkpoint does not tell, as for :func:`read_policy`.

        Raises:
            CheckpointError: no such policy, or one of its files is missing, corrupt or partial.
            RobotMismatchError: made for another robot.
            ConfigError: no such device or dtype, the policy was not trained for what ``rtc`` asks, or a public
                checkpoint leaves something open.
        """
        files = read_policy(name, policy_config, robot, asset, tokenizer)
        config, norm_stats = files.config, files.require_norm_stats()
        pieces = Tokenizer(files.require_tokenizer(), config.model.max_token_len)
        try:
            PolicyTransforms(config, norm_stats, pieces)
        except ConfigError as error:
            raise CheckpointError(f"The files of policy {files.directory} do not fit together: {error}") from error
        model = Pi0.empty(config.model, _torch_dtype(dtype), resolve_device(device))
        files.checkpoint.load(model)
        policy = cls(model, config, norm_stats, pieces, device, dtype, rtc)
        policy.robot = robot or config.robot
        return policy

    def save(self, directory: str | Path) -> None:
        """Write a policy directory that :meth:`from_pretrained` reads.

        Each file gets its name when it is complete, policy.json last, so an interrupted save cuts no file short.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, write in (
            (WEIGHTS_FILE, partial(save_weights, self.model)),
            (STATS_FILE, self.transforms.norm_stats.save),
            (TOKENIZER_FILE, self.transforms.tokenizer.save),
            (CONFIG_FILE, self.config.save),
        ):
            write_file(directory / name, write)

    def with_rtc(self, rtc: RtcConfig) -> "Pi0Policy":
        """The same policy, sharing its weights and noise, that continues prefixes in another way.

        Raises:
            ConfigError: the policy was not trained for it.
        """
        rtc.check(self.config)
        other = copy.copy(self)
        other.rtc = rtc
        return other

    @property
    def horizon(self) -> int:
        """Actions per chunk H."""
        return self.config.model.action_horizon

    @property
    def execution_horizon(self) -> int:
        """How many of them to play before the next chunk, as the policy's maker recommends."""
        return self.config.execution_horizon

    @property
    def rates(self) -> tuple[str, ...]:
        """Joints whose actions are velocities or steps, 0 to stand still, and no positions."""
        return self.config.rates

    def check(self, observation: Observation) -> None:
        """Raise ObservationError if a camera is missing, an image, the state or the prompt is not as expected.

        The length of the prompt is known, and refused, only when a chunk is inferred.
        """
        self.transforms.check(observation)

    def infer(self, observation: Observation, *, noise: Noise = None, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """The chunk for one observation.

        Args:
            observation: as the robot sees itself now.
            noise: where the flow starts, float32 [H, action_dim]; drawn from the policy's generator if None.
            prefix: what is left of the chunk under way, continued as ``rtc`` says.

        Raises:
            ObservationError: a camera is missing, an image, the state or the prompt is not as expected.
            ConfigError: the prefix does not fit the robot, the horizon or what the policy was trained for.
            CheckpointError: the actions are not finite, so the weights or statistics are bad.
        """
        return self.infer_batch([observation], noise=noise, prefixes=[prefix])[0]

    def infer_batch(
        self, observations: Sequence[Observation], *, noise: Noise = None, prefixes: Prefixes = None
    ) -> list[ActionChunk]:
        """One chunk per observation from one pass; ``noise`` is [H, action_dim] for all or [B, H, action_dim].

        A row without a prefix is as if alone. The timing in each chunk is that of the whole batch. Raises as
        :meth:`infer`.
        """
        if prefixes is not None and len(prefixes) != len(observations):
            raise ConfigError(f"Got {len(prefixes)} prefixes for {len(observations)} observations; expected one each.")
        if not observations:
            return []
        started = clock.perf_counter()
        inputs = self.transforms.inputs(observations)
        states = np.stack([np.asarray(observation.state, np.float32) for observation in observations])
        start = (
            sample_noise(self.model.config, len(observations), self._generator)
            if noise is None
            else torch.from_numpy(np.asarray(noise, np.float32))
        )
        known, guidance = steer(self.rtc, self.transforms, prefixes or [None] * len(observations), states)
        timing: dict[str, float] = {"preprocess_ms": 1000 * (clock.perf_counter() - started)}
        sampled = self._sample(inputs, start, timing=timing, known_actions=known, guidance=guidance)
        actions = self.transforms.actions(sampled.cpu().numpy(), states)
        if not np.isfinite(actions).all():
            raise CheckpointError("The policy computed actions that are not finite; its weights or statistics are bad.")
        timing_ms = {stage.removesuffix("_ms"): value for stage, value in timing.items()}
        return [
            ActionChunk(chunk, observation.stamp_s, self.robot.dt_s, timing_ms, observation.prompt)
            for chunk, observation in zip(actions, observations, strict=True)
        ]

    def reset(self, seed: int | None = None) -> None:
        """Start an episode; a seed restarts the noise, None lets it run on."""
        if seed is not None:
            self._generator.manual_seed(seed)


class HoldPolicy:
    """Stays where it is: repeats the state of the observation. Ships as the policy for tests and dry runs."""

    rates: tuple[str, ...] = ()

    def __init__(self, robot: RobotSpec, horizon: int = 16, execution_horizon: int | None = None) -> None:
        self.robot = robot
        self.horizon = horizon
        self.execution_horizon = horizon if execution_horizon is None else execution_horizon
        if not 1 <= self.execution_horizon <= horizon:
            raise ConfigError(f"execution_horizon is {self.execution_horizon}; expected 1 to the horizon {horizon}.")

    def check(self, observation: Observation) -> None:
        """Raise ObservationError if the state is not the robot's or the prompt is empty or not text."""
        check_observation(observation, self.robot)

    def infer(self, observation: Observation, *, noise: Noise = None, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """The state, ``horizon`` times; ``noise`` and ``prefix`` are ignored. Raises as :meth:`check`."""
        self.check(observation)
        state = np.asarray(observation.state, np.float32)
        timing_ms = {"preprocess": 0.0, "prefix": 0.0, "denoise": 0.0}
        actions = np.tile(state, (self.horizon, 1))
        return ActionChunk(actions, observation.stamp_s, self.robot.dt_s, timing_ms, observation.prompt)

    def infer_batch(
        self, observations: Sequence[Observation], *, noise: Noise = None, prefixes: Prefixes = None
    ) -> list[ActionChunk]:
        """One chunk per observation."""
        return [self.infer(observation) for observation in observations]

    def reset(self, seed: int | None = None) -> None:
        """Nothing to restart."""


def load_policy(
    name: str,
    robot: RobotSpec | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    rtc: RtcConfig | None = None,
    policy_config: Given = None,
    asset: str | None = None,
    tokenizer: str | Path | None = None,
    threads: int = 0,
) -> Policy:
    """What ``pi0 serve`` and policy_node call a policy: ``hold``, or whatever :meth:`Pi0Policy.from_pretrained` takes.

    Args:
        name, device, dtype, rtc, policy_config, asset, tokenizer: as for from_pretrained.
        robot: as there; ``hold`` is for this one, ``arm6`` without one.
        threads: of PyTorch on the CPU, for the whole process and threads to come. With 0 it is one for a small network
            on a CPU: shared among threads, its operators wait for one another, and for whichever another program has
            put aside. A large network has PyTorch's choice.

    Raises:
        ConfigError, CheckpointError: as from_pretrained; a negative number of threads.
    """
    if threads < 0:
        raise ConfigError(f"threads is {threads}; expected 1 or more, or 0 to leave it to the policy's size.")
    if name == "hold":
        return HoldPolicy(robot or RobotSpec.from_yaml("arm6"))
    policy = Pi0Policy.from_pretrained(name, device, dtype, robot, rtc, policy_config, asset, tokenizer)
    is_small = policy.device.type == "cpu" and sum(each.numel() for each in policy.model.parameters()) < SMALL
    if threads or is_small:
        torch.set_num_threads(threads or 1)
    return policy


def _torch_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"No dtype {name!r}; available: {sorted(DTYPES)}.")
    return DTYPES[name]


def warm_up(policy: Policy, cameras: Sequence[str], image_shape: tuple[int, int, int], has_prefix: bool) -> None:
    """The first inferences of their kind take longest; nothing is done with these.

    Args:
        cameras: those that observations will have, with images of ``image_shape`` [H, W, 3].
        has_prefix: chunks will continue others (real-time chunking).
    """
    images = {name: np.zeros(image_shape, np.uint8) for name in cameras}
    observation = Observation(images, policy.robot.home, "warm up")
    chunk = policy.infer(observation)
    if has_prefix:
        policy.infer(observation, prefix=ChunkPrefix(chunk.actions[:1], 1, 1))


def resolve_device(name: str) -> torch.device:
    """The torch device of that name, tried out with one number.

    Raises:
        ConfigError: no such device, or not on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"Torch device {name!r} cannot be used on this machine; 'cpu' can.") from error
    return device
