"""Between physical units and model space: what inference and training both do to observations and actions."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pi0_control.errors import ConfigError, ObservationError
from pi0_control.model.pi0 import ModelInputs
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.images import Pixels, check_image, fit_image
from pi0_control.policy.norm_stats import BOUNDS, NormStats, VectorStats
from pi0_control.policy.tokenizer import Tokenizer, Tokens, clean_prompt
from pi0_control.policy.units import UNITS
from pi0_control.robot import RobotSpec
from pi0_control.types import Observation


class PolicyTransforms:
    """Observations to model inputs, model outputs to joint targets, and joint targets to training targets.

    The order of the steps is openpi's: deltas are taken in the policy's units before normalisation (so the statistics
    of ``actions`` are those of deltas), and the state in a prompt is normalised.

    Args:
        config: how this policy does it.
        norm_stats: statistics of the state and of the actions as the model predicts them.
        tokenizer: its length is the model's ``max_token_len``.

    Raises:
        ConfigError: the three do not fit together.
    """

    def __init__(self, config: PolicyConfig, norm_stats: NormStats, tokenizer: Tokenizer) -> None:
        self.config = config
        self.norm_stats = norm_stats
        self.tokenizer = tokenizer
        self._units = UNITS[config.units]
        self._commanded = list(config.commanded)
        self._check_parts()

    def inputs(self, observations: Sequence[Observation]) -> ModelInputs:
        """A batch of model inputs on the CPU, one row per observation.

        Raises:
            ObservationError: a camera is missing, an image, a state or a prompt is not as expected.
        """
        for observation in observations:
            self.check(observation)
        states = np.stack([np.asarray(observation.state, np.float32) for observation in observations])
        normalized = self.state(states)
        padded = _pad_last(normalized, self.config.model.action_dim)
        in_prompt = padded if self.config.pad_state_in_prompt else normalized
        tokens, token_masks = zip(*map(self._tokenize, observations, in_prompt), strict=True)
        images, image_masks = zip(*map(self._images, observations), strict=True)
        return ModelInputs(
            images=torch.from_numpy(np.stack(images)),
            image_masks=torch.from_numpy(np.stack(image_masks)),
            tokens=torch.from_numpy(np.stack(tokens)),
            token_mask=torch.from_numpy(np.stack(token_masks)),
            state=torch.from_numpy(padded),
        )

    def state(self, states: ArrayLike) -> NDArray[np.float32]:
        """States [.., D] in the robot's units to model space, float32 [.., D]."""
        return self._normalize(self.norm_stats.state, policy_states(states, self.config))

    def actions(self, model_actions: ArrayLike, states: ArrayLike) -> NDArray[np.float32]:
        """Model outputs to what the robot takes, joint targets in general; nothing is clipped.

        Args:
            model_actions: [B, H, action_dim], normalised.
            states: [B, D], those of the observations the actions were predicted from.

        Returns:
            float32 [B, H, D] in the robot's units; what is not commanded keeps its state.
        """
        states = np.asarray(states, np.float32)
        relative = np.asarray(model_actions, np.float32)[..., : len(self._commanded)]
        config = self.config
        relative = self.norm_stats.actions.unnormalize(relative, config.norm, config.norm_eps, config.norm_rule)
        actions = self._units.to_robot(relative + _offset(states, config))
        if not config.uncommanded:
            return actions
        held = np.repeat(states[:, None], actions.shape[1], axis=1)
        held[..., self._commanded] = actions
        return held

    def targets(self, actions: ArrayLike, states: ArrayLike) -> NDArray[np.float32]:
        """The inverse of :meth:`actions`: joint targets [B, H, D] to model space, float32 [B, H, action_dim]."""
        predicted = policy_actions(actions, states, self.config)
        return _pad_last(self._normalize(self.norm_stats.actions, predicted), self.config.model.action_dim)

    def check(self, observation: Observation) -> None:
        """Refuse an observation without resizing or tokenising anything.

        Raises:
            ObservationError: a camera is missing, an image or the state is not as expected, or the prompt is empty or
                not text.
        """
        used = [name for name in self.config.cameras.values() if name is not None]
        check_observation(observation, self.config.robot, self.config.required_cameras, used)

    def _normalize(self, stats: VectorStats, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return stats.normalize(values, self.config.norm, self.config.norm_eps, self.config.norm_rule)

    def _tokenize(self, observation: Observation, state: NDArray[np.float32]) -> Tokens:
        if self.config.prompt_format == "pi05":
            return self.tokenizer.encode_pi05(observation.prompt, state)
        if self.config.prompt_format == "lerobot_pi0":
            return self.tokenizer.encode_lerobot_pi0(observation.prompt)
        return self.tokenizer.encode_pi0(observation.prompt)

    def _images(self, observation: Observation) -> tuple[Pixels, NDArray[np.bool_]]:
        """Images [cameras, 3, S, S] as the model takes them and their mask; masked ones are black."""
        size, names = self.config.model.vision.image_size, list(self.config.cameras.values())
        shape = (len(names), size, size, 3)
        in_bytes = self.config.resize == "pad_antialias"
        images: Pixels = np.zeros(shape, np.uint8) if in_bytes else np.full(shape, -1, np.float32)
        mask = np.array([name in observation.images for name in names])
        for slot, name in enumerate(names):
            if name is not None and mask[slot]:
                images[slot] = fit_image(observation.images[name], size, self.config.resize)
        return images.transpose(0, 3, 1, 2).copy(), mask

    def _check_parts(self) -> None:
        model = self.config.model
        if self.tokenizer.max_len != model.max_token_len:
            raise ConfigError(
                f"The tokenizer pads to {self.tokenizer.max_len}; expected the model's {model.max_token_len}."
            )
        if self.tokenizer.vocab_size > model.vocab_size:
            raise ConfigError(
                f"The tokenizer has {self.tokenizer.vocab_size} pieces; expected at most the model's vocabulary of "
                f"{model.vocab_size}."
            )
        self._check_stats("state", self.norm_stats.state, len(self.config.robot.joints))
        self._check_stats("actions", self.norm_stats.actions, len(self._commanded))

    def _check_stats(self, name: str, stats: VectorStats, joints: int) -> None:
        if len(stats.mean) < joints:
            raise ConfigError(
                f"The statistics of {name} have {len(stats.mean)} entries; expected at least {joints}, one per joint."
            )
        stats.bounds(self.config.norm)  # refused now, if they are missing
        for lower, upper in BOUNDS.values():
            below, above = getattr(stats, lower), getattr(stats, upper)
            if below is not None and above is not None and (above < below).any():
                raise ConfigError(
                    f"The statistics of {name} have {upper} below {lower}; expected {lower} <= {upper} in every entry."
                )


def check_observation(
    observation: Observation, robot: RobotSpec, required: Collection[str] = (), used: Iterable[str] = ()
) -> None:
    """Refuse an observation that a policy must not act upon, without resizing or tokenising anything.

    Args:
        observation: what is looked at.
        robot: whose state it should have.
        required: cameras it must have.
        used: cameras whose images must be images where it has them.

    Raises:
        ObservationError: a camera is missing, an image or the state is not as expected, or the prompt is empty or not
            text.
    """
    check_state(observation.state, robot)
    clean_prompt(observation.prompt)
    images = observation.images
    if not isinstance(images, Mapping):
        raise ObservationError(f"The images are {type(images).__name__}; expected a dict by camera.")
    missing = [name for name in required if name not in images]
    if missing:
        raise ObservationError(
            f"The observation has cameras {sorted(images)} and lacks {missing}; expected {list(required)}."
        )
    for name in used:
        if name in images:
            check_image(images[name], name)


def check_state(state: ArrayLike, robot: RobotSpec) -> None:
    """Refuse a state that is not one number [D] per joint of the robot.

    Raises:
        ObservationError: another length, not numbers, or not finite.
    """
    names = robot.joint_names
    try:
        values = np.asarray(state, np.float32)
    except (TypeError, ValueError) as error:
        raise ObservationError(f"The state is not a vector of numbers; expected {list(names)}.") from error
    if values.shape != (len(names),):
        raise ObservationError(f"The state has shape {list(values.shape)}; expected [{len(names)}]: {list(names)}.")
    if not np.isfinite(values).all():
        bad = [name for name, value in zip(names, values, strict=True) if not np.isfinite(value)]
        raise ObservationError(f"The state of {bad} is not finite; expected numbers.")


def policy_states(states: ArrayLike, config: PolicyConfig) -> NDArray[np.float32]:
    """States [.., D] of the robot as the policy's statistics have them, float32 [.., D]."""
    return UNITS[config.units].state(states)


def for_all_joints(actions: NDArray[np.float32], config: PolicyConfig) -> NDArray[np.float32]:
    """Actions [N, D] of the robot, 0 for joints without one, of those [N, D] or of the commanded joints alone."""
    if actions.shape[1] == len(config.robot.joints):
        return actions
    wide = np.zeros((len(actions), len(config.robot.joints)), np.float32)
    wide[:, list(config.commanded)] = actions
    return wide


def policy_actions(actions: ArrayLike, states: ArrayLike, config: PolicyConfig) -> NDArray[np.float32]:
    """Actions of the robot as the policy predicts them and its statistics have them, before normalisation.

    Args:
        actions: [B, H, D] in the robot's units; every step of a chunk is taken relative to the same state.
        states: [B, D] in the robot's units.
        config: says which joints are commanded, in what units, and which are relative to the state.

    Returns:
        float32 [B, H, commanded joints].
    """
    commanded = np.asarray(actions, np.float32)[..., list(config.commanded)]
    return UNITS[config.units].action(commanded) - _offset(states, config)


def _offset(states: ArrayLike, config: PolicyConfig) -> NDArray[np.float32]:
    """What a policy's actions are relative to: the state, or 0, float32 [B, 1, commanded joints]."""
    offset = np.where(config.delta_mask, policy_states(states, config), np.float32(0))
    return offset[:, None, list(config.commanded)]


def _pad_last(values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Zeros behind the last axis up to the length."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])])
