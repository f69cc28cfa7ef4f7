"""Between physical units and model space: what inference and training both do to observations and actions."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pi0_control.errors import ConfigError, ObservationError
from pi0_control.model.pi0 import ModelInputs
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.images import check_image, resize_with_pad, to_model_range
from pi0_control.policy.norm_stats import NormStats, VectorStats
from pi0_control.policy.tokenizer import Tokenizer, Tokens, clean_prompt
from pi0_control.robot import RobotSpec
from pi0_control.types import Observation


class PolicyTransforms:
    """Observations to model inputs, model outputs to joint targets, and joint targets to training targets.

    The order of the steps is openpi's: deltas are taken in physical units before normalisation (so the statistics of
    ``actions`` are those of deltas), and the state in a prompt is normalised.

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
        self._delta_mask = np.array(config.delta_mask)
        self._check_parts()

    def inputs(self, observations: Sequence[Observation]) -> ModelInputs:
        """A batch of model inputs on the CPU, one row per observation.

        Raises:
            ObservationError: a camera is missing, an image, a state or a prompt is not as expected.
        """
        for observation in observations:
            self.check(observation)
        states = np.stack([np.asarray(observation.state, np.float32) for observation in observations])
        normalized = self._normalize(self.norm_stats.state, states)
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

    def actions(self, model_actions: ArrayLike, states: ArrayLike) -> NDArray[np.float32]:
        """Model outputs to absolute joint targets; nothing is clipped.

        Args:
            model_actions: [B, H, action_dim], normalised.
            states: [B, D], those of the observations the actions were predicted from.

        Returns:
            float32 [B, H, D] in the robot's units.
        """
        states = np.asarray(states, np.float32)
        relative = np.asarray(model_actions, np.float32)[..., : states.shape[-1]]
        relative = self.norm_stats.actions.unnormalize(relative, self.config.norm, self.config.norm_eps)
        return relative + np.where(self._delta_mask, states, np.float32(0))[:, None]

    def deltas(self, actions: ArrayLike, states: ArrayLike) -> NDArray[np.float32]:
        """Absolute joint targets [B, H, D] as the model predicts them: :func:`deltas` with the policy's mask."""
        return deltas(actions, states, self._delta_mask)

    def targets(self, actions: ArrayLike, states: ArrayLike) -> NDArray[np.float32]:
        """The inverse of :meth:`actions`: joint targets [B, H, D] to model space, float32 [B, H, action_dim]."""
        return _pad_last(
            self._normalize(self.norm_stats.actions, self.deltas(actions, states)), self.config.model.action_dim
        )

    def check(self, observation: Observation) -> None:
        """Refuse an observation without resizing or tokenising anything.

        Raises:
            ObservationError: a camera is missing, an image or the state is not as expected, or the prompt is empty or
                not text.
        """
        check_state(observation.state, self.config.robot)
        clean_prompt(observation.prompt)
        if not isinstance(observation.images, Mapping):
            raise ObservationError(f"The images are {type(observation.images).__name__}; expected a dict by camera.")
        missing = [name for name in self.config.required_cameras if name not in observation.images]
        if missing:
            raise ObservationError(
                f"The observation has cameras {sorted(observation.images)} and lacks {missing}; "
                f"expected {list(self.config.required_cameras)}."
            )
        used = [name for name in self.config.cameras.values() if name is not None and name in observation.images]
        for name in used:
            check_image(observation.images[name], name)

    def _normalize(self, stats: VectorStats, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return stats.normalize(values, self.config.norm, self.config.norm_eps)

    def _tokenize(self, observation: Observation, state: NDArray[np.float32]) -> Tokens:
        if self.config.prompt_format == "pi05":
            return self.tokenizer.encode_pi05(observation.prompt, state)
        return self.tokenizer.encode_pi0(observation.prompt)

    def _images(self, observation: Observation) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Images [cameras, 3, S, S] in [-1, 1] and their mask; masked ones are black."""
        size, names = self.config.model.vision.image_size, list(self.config.cameras.values())
        images = np.zeros((len(names), size, size, 3), np.uint8)
        mask = np.array([name in observation.images for name in names])
        for slot, name in enumerate(names):
            if name is not None and mask[slot]:
                images[slot] = resize_with_pad(observation.images[name], size)
        return np.ascontiguousarray(to_model_range(images).transpose(0, 3, 1, 2)), mask

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
        for name, stats in (("state", self.norm_stats.state), ("actions", self.norm_stats.actions)):
            self._check_stats(name, stats)

    def _check_stats(self, name: str, stats: VectorStats) -> None:
        joints = len(self.config.robot.joints)
        if len(stats.mean) < joints:
            raise ConfigError(
                f"The statistics of {name} have {len(stats.mean)} entries; expected at least {joints}, one per joint."
            )
        if stats.q01 is not None and stats.q99 is not None and (stats.q99 < stats.q01).any():
            raise ConfigError(f"The statistics of {name} have q99 below q01; expected q01 <= q99 in every entry.")
        self._normalize(stats, np.zeros(joints, np.float32))


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


def deltas(actions: ArrayLike, states: ArrayLike, delta_mask: ArrayLike) -> NDArray[np.float32]:
    """Absolute joint targets as distances to the state, for the joints of the mask; the statistics are of these.

    Args:
        actions: [B, H, D] in the robot's units; every step of a chunk is taken relative to the same state.
        states: [B, D].
        delta_mask: bool [D], True for a distance, False where the target stays absolute.

    Returns:
        float32 [B, H, D] in the robot's units.
    """
    offset = np.where(np.asarray(delta_mask, np.bool_), np.asarray(states, np.float32), np.float32(0))
    return np.asarray(actions, np.float32) - offset[:, None]


def _pad_last(values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Zeros behind the last axis up to the length."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])])
