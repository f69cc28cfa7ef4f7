"""Frames of a dataset as model inputs, without a line of Python per sample while training."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pi0_control.errors import DatasetError
from pi0_control.model import ModelInputs, sample_time
from pi0_control.model.pi0 import in_model_range
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.transforms import PolicyTransforms
from pi0_control.train.augment import saturate, turn_and_crop
from pi0_control.train.config import TrainConfig
from pi0_control.train.dataset import Dataset
from pi0_control.train.distributed import World
from pi0_control.train.episode import Episode
from pi0_control.types import Observation

Indices = NDArray[np.int64]
_ENCODE_AT_ONCE = 64
_ON_THE_ARM = ("wrist", "hand")


class Draws:
    """The randomness of one step: a function of the seed, the stage and the step, so nothing of it needs saving.

    Every rank of the world draws for the whole batch and gets its own rows; all shapes here are those of one rank.
    """

    def __init__(self, seed: int, stage: int, step: int, world: World) -> None:
        self.world, self.device = world, world.device
        self._numpy = np.random.default_rng((seed, stage, step))
        self._torch = torch.Generator(self.device).manual_seed(int(self._numpy.integers(2**62)))

    def normal(self, rows: int, *shape: int) -> Tensor:
        """Standard normal numbers, float32 [rows, ..]."""
        size = (rows * self.world.size, *shape)
        return self.world.rows(torch.randn(size, generator=self._torch, device=self.device))

    def uniform(self, rows: int, *shape: int) -> Tensor:
        """Numbers in [0, 1), float32 [rows, ..]."""
        size = (rows * self.world.size, *shape)
        return self.world.rows(torch.rand(size, generator=self._torch, device=self.device))

    def times(self, rows: int) -> Tensor:
        """Times of the flow, float32 [rows]."""
        return self.world.rows(sample_time(rows * self.world.size, self._torch, self.device))

    def integers(self, high: int, rows: int, *shape: int) -> Indices:
        """Whole numbers from 0 to below ``high``, [rows, ..]."""
        return self.world.rows(self._numpy.integers(high, size=(rows * self.world.size, *shape)))

    def frames(self, frames: Indices, batch: int) -> Indices:
        """This rank's part of a whole batch of random frames; in rising order, which reads a mapped file fastest."""
        return self.world.rows(np.sort(frames[self._numpy.integers(len(frames), size=batch)]))


def wrist_cameras(config: PolicyConfig) -> tuple[str, ...]:
    """The cameras whose name has "wrist" or "hand" in it; where there is none, those in the slots of wrist cameras."""
    seen = {slot: camera for slot, camera in config.cameras.items() if camera is not None}
    named = tuple(camera for camera in seen.values() if any(word in camera.lower() for word in _ON_THE_ARM))
    return named or tuple(camera for slot, camera in seen.items() if "wrist" in slot)


class FrameImages:
    """Images of a dataset's frames in the camera slots of a model.

    Args:
        images: uint8 [N, used cameras, S, S, 3], the cameras in the order of their slots.
        config: tells which slots have a camera.
    """

    def __init__(self, images: NDArray[np.uint8], config: PolicyConfig) -> None:
        self._images = images
        self._used = [slot for slot, camera in enumerate(config.cameras.values()) if camera is not None]
        self._num_slots = len(config.cameras)
        wrists = wrist_cameras(config)
        self._wrists = [slot for slot, camera in enumerate(config.cameras.values()) if camera in wrists]
        self._fixed = [slot for slot in self._used if slot not in self._wrists]

    def get(self, indices: Indices, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images float32 [B, cameras, 3, S, S] in [-1, 1] and their masks bool [B, cameras]."""
        seen = torch.from_numpy(np.ascontiguousarray(self._images[indices])).to(device)
        batch, side = len(indices), seen.shape[2]
        images = torch.full((batch, self._num_slots, 3, side, side), -1.0, device=device)
        images[:, self._used] = in_model_range(seen.permute(0, 1, 4, 2, 3))
        masks = torch.zeros(batch, self._num_slots, dtype=torch.bool, device=device)
        masks[:, self._used] = True
        return images, masks

    def augment(self, images: Tensor, masks: Tensor, config: TrainConfig, draws: Draws) -> None:
        """Change every image by chance, and mask one wrist camera now and then; in place. What is off draws nothing."""
        if self._fixed and (config.crop < 1 or config.rotation_deg):
            right, down, turn = (2 * draws.uniform(len(masks), len(self._fixed), 3) - 1).flatten(0, 1).unbind(-1)
            views, shift = images[:, self._fixed].flatten(0, 1), torch.stack([right, down], dim=-1)
            views = turn_and_crop(views, config.crop, shift, config.rotation_deg * turn)
            images[:, self._fixed] = views.unflatten(0, (len(masks), -1))
        shape = (*masks.shape, 1, 1, 1)
        images.mul_(1 + config.contrast_jitter * draws.normal(*shape))
        images.add_(config.brightness_jitter * draws.normal(*shape))
        if config.saturation_jitter:
            saturate(images, 1 + config.saturation_jitter * draws.normal(*shape))
        images.clamp_(-1, 1)
        if config.camera_dropout and self._wrists:
            dropped = draws.uniform(len(masks)) < config.camera_dropout
            wrists = torch.tensor(self._wrists, device=masks.device)
            which = wrists[(draws.uniform(len(masks)) * len(wrists)).long()]
            rows = torch.arange(len(masks), device=masks.device)
            masks[rows, which] &= ~dropped
            images.masked_fill_(~masks[..., None, None, None], -1.0)  # what the policy gets for a missing camera


def encode_prompts(
    prompts: Sequence[str], states: NDArray[np.float32], transforms: PolicyTransforms
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [n, T] and masks bool [n, T] of prompts and their states [n, D], as the policy will encode them."""
    side = transforms.config.model.vision.image_size
    black = {camera: np.zeros((side, side, 3), np.uint8) for camera in transforms.config.robot.cameras}
    tokens, masks = [], []
    for start in range(0, len(prompts), _ENCODE_AT_ONCE):
        rows = range(start, min(start + _ENCODE_AT_ONCE, len(prompts)))
        inputs = transforms.inputs([Observation(black, states[row], prompts[row]) for row in rows])
        tokens.append(inputs.tokens)
        masks.append(inputs.token_mask)
    return torch.cat(tokens), torch.cat(masks)


class FrameInputs:
    """All of a dataset that the model takes in, ready to be indexed.

    Args:
        dataset: N frames of the policy's robot.
        images: uint8 [N, used cameras, S, S, 3].
        transforms: of the policy.

    Raises:
        ObservationError: an instruction does not fit the tokenizer.
    """

    def __init__(self, dataset: Dataset, images: NDArray[np.uint8], transforms: PolicyTransforms) -> None:
        config = transforms.config
        self.images = FrameImages(images, config)
        normalized = transforms.state(dataset.states)
        self._joints = normalized.shape[1]
        padding = config.model.action_dim - self._joints
        self._states = torch.from_numpy(np.pad(normalized, ((0, 0), (0, padding))))
        if config.discrete_state_input:  # every frame has its own tokens
            prompts = [dataset.prompt(index) for index in range(len(dataset))]
            self._tokens, self._token_masks = encode_prompts(prompts, dataset.states, transforms)
            self._rows = torch.arange(len(dataset))
        else:
            states = np.zeros((len(dataset.tasks), dataset.states.shape[1]), np.float32)
            self._tokens, self._token_masks = encode_prompts(dataset.tasks, states, transforms)
            self._rows = torch.from_numpy(dataset.task_index)

    def get(self, indices: Indices, device: torch.device) -> ModelInputs:
        """The inputs of some frames, as they are."""
        images, masks = self.images.get(indices, device)
        rows = self._rows[indices]
        tokens, token_mask = self._tokens[rows].to(device), self._token_masks[rows].to(device)
        return ModelInputs(images, masks, tokens, token_mask, self._states[indices].to(device))

    def get_augmented(self, indices: Indices, config: TrainConfig, draws: Draws) -> ModelInputs:
        """The inputs of some frames with random changes to images and state."""
        inputs = self.get(indices, draws.device)
        self.images.augment(inputs.images, inputs.image_masks, config, draws)
        inputs.state[:, : self._joints] += config.state_noise * draws.normal(len(indices), self._joints)
        inputs.state *= draws.uniform(len(indices), 1) >= config.state_dropout
        return inputs


def split_episodes(dataset: Dataset, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Frames to learn from and frames held out, by whole episodes: one at random of each 1 / fraction in a row.

    Which it is depends on the name of the episodes' folder, their place in it and the seed. So what was once learned is
    never held out when episodes or folders are added.

    Raises:
        DatasetError: one episode, so that none can be held out.
    """
    chosen = _held_out(dataset.episodes, fraction, seed) if fraction else []
    if len(chosen) == len(dataset.episodes):
        raise DatasetError(
            f"The dataset has {len(chosen)} episode; expected two or more, or a validation_fraction of 0."
        )
    is_held_out = np.isin(dataset.episode_index, chosen)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _held_out(episodes: Sequence[Episode], fraction: float, seed: int) -> list[int]:
    """Positions of the episodes that are held out; one at least."""
    places = [(episode.root.absolute().name, episode.index) for episode in episodes]
    chosen = []
    for position, (folder, index) in enumerate(places):
        row = math.floor(index * fraction)
        start, end = math.ceil(row / fraction), math.ceil((row + 1) / fraction)
        if index == start + int((end - start) * _draw(folder, start, seed)):
            chosen.append(position)
    return chosen or [min(range(len(places)), key=lambda position: _draw(*places[position], seed))]


def _draw(folder: str, index: int, seed: int) -> float:
    """A random number in [0, 1) of its own for every place in a folder."""
    return float(np.random.default_rng([seed, index, *folder.encode()]).random())


def evenly(frames: Indices, number: int) -> Indices:
    """At most ``number`` frames, spread over all of them."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, min(number, len(frames))).astype(np.int64))]
