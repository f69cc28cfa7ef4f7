"""Grounding: learn what the words mean by saying where the named object is.

A policy trained on demonstrations alone ignores the instruction, because the arm's own motion gives the target away.
Locating every object of random scenes by its name, from the prefix's text tokens, makes the words matter first.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pi0_control.errors import ConfigError, DatasetError
from pi0_control.model import ModelInputs, Pi0
from pi0_control.policy.transforms import PolicyTransforms
from pi0_control.train import layout
from pi0_control.train.batches import Draws, FrameImages, Indices, encode_prompts, evenly, split_episodes
from pi0_control.train.config import TrainConfig
from pi0_control.train.dataset import Dataset

_MIN_SCALE_M = 0.02  # an axis along which objects hardly move must not dominate
_VALIDATION_IMAGES = 256


class GroundingHead(nn.Module):
    """Where are the objects the instruction names? Read from the text tokens behind the last layer; for training only.

    Args:
        width: of the prefix.
        positions: [.., 3], positions that occur [m]; they set the normalisation.
    """

    def __init__(self, width: int, positions: NDArray[np.float32]) -> None:
        super().__init__()
        seen = torch.from_numpy(positions.reshape(-1, 3))
        spread = seen.std(0, correction=0) if len(seen) else torch.ones(3)
        self.register_buffer("mean", seen.mean(0) if len(seen) else torch.zeros(3))
        self.register_buffer("scale", spread.clamp(min=_MIN_SCALE_M))
        self.norm = nn.RMSNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 3 * layout.NUM_TARGETS)

    def forward(self, prefix: Tensor, token_mask: Tensor) -> Tensor:
        """Prefix [B, S, width], whose last T tokens are text, and its mask [B, T] -> normalised positions [B, 2, 3]."""
        weights = token_mask / token_mask.sum(1, keepdim=True).clamp(min=1)
        text = (prefix[:, -token_mask.shape[1] :] * weights[..., None].to(prefix.dtype)).sum(1)
        return self.out(F.gelu(self.hidden(self.norm(text.float())))).float().unflatten(-1, (layout.NUM_TARGETS, 3))

    def loss(self, predicted: Tensor, positions: Tensor, shares: Tensor) -> Tensor:
        """Smooth absolute error [] of normalised predictions for positions [m], both [B, 2, 3], weighed by ``shares``
        [B, 2].
        """
        wanted = (positions - self.get_buffer("mean")) / self.get_buffer("scale")
        error = F.smooth_l1_loss(predicted, wanted, beta=0.1, reduction="none").mean(-1)
        return (error * shares).sum()

    def error_m(self, predicted: Tensor, positions: Tensor) -> Tensor:
        """Distances [B, 2] between predicted and true positions [m]."""
        return (predicted * self.get_buffer("scale") + self.get_buffer("mean") - positions).norm(dim=-1)


class Learner(nn.Module):
    """What is trained: the policy's network and the grounding head beside it."""

    def __init__(self, policy: Pi0, head: GroundingHead) -> None:
        super().__init__()
        self.policy = policy
        self.head = head

    def forward(self, compute: Callable[..., Any], *args: Any) -> Any:
        """``compute(self, *args)``, any computation with the weights: what DDP and FSDP wrap is a forward pass."""
        return compute(self, *args)


class GroundingStage:
    """Random scenes: every image is asked for every object, in a random wording.

    Args:
        dataset: frames with ``observation.objects``; their instructions are not used.
        images: uint8 [N, used cameras, S, S, 3].
        transforms: of the policy.
        templates: wordings with ``{object}`` for the object to locate and perhaps ``{other}`` for another one.
        config: of the training.

    Raises:
        DatasetError: the dataset holds no objects.
        ConfigError: no template, or one without ``{object}``.
    """

    name = "grounding"

    def __init__(
        self,
        dataset: Dataset,
        images: NDArray[np.uint8],
        transforms: PolicyTransforms,
        templates: Sequence[str],
        config: TrainConfig,
    ) -> None:
        if not dataset.object_names:
            raise DatasetError(f"{dataset.roots[0]} holds no object positions; grounding needs observation.objects.")
        _check_templates(templates)
        self.steps = config.grounding_steps
        self._config = config
        self._images = FrameImages(images, transforms.config)
        self._objects = torch.from_numpy(dataset.objects)
        self._tokens, self._token_masks, self._targets = _encode_templates(templates, dataset, transforms)
        self._state_dim = transforms.config.model.action_dim
        self._frames, held_out = split_episodes(dataset, config.validation_fraction, config.seed)
        self._held_out = evenly(held_out, _VALIDATION_IMAGES) if len(held_out) else held_out
        self.samples_per_step = config.grounding_batch_size
        self._forward = torch.compile(locate) if config.compile else locate

    def losses(self, learner: Learner, draws: Draws) -> dict[str, Tensor]:
        """This rank's share of the loss of one random batch, to be minimised."""
        indices = draws.frames(self._frames, self._config.grounding_batch_size)
        images, masks = self._images.get(indices, draws.device)
        self._images.augment(images, masks, self._config, draws)
        wording = draws.integers(len(self._tokens), len(indices), self._num_objects)
        predicted = self._forward(learner, self._inputs(images, masks, wording))
        positions, is_named = self._named(indices, wording, draws.device)
        return {"loss": learner.head.loss(predicted, positions, draws.world.share(is_named))}

    @torch.no_grad()
    def validate(self, learner: Learner, device: torch.device) -> dict[str, float]:
        """Median distance [m] of the predictions on held-out images, and how many are within 2 cm."""
        errors = []
        size = self._config.grounding_batch_size
        for start in range(0, len(self._held_out), size):
            indices = self._held_out[start : start + size]
            wording = (indices[:, None] + np.arange(self._num_objects)) % len(self._tokens)
            inputs = self._inputs(*self._images.get(indices, device), wording)
            positions, is_named = self._named(indices, wording, device)
            errors.append(learner.head.error_m(locate(learner, inputs), positions)[is_named > 0])
        if not errors:
            return {}
        error = torch.cat(errors)
        return {"grounding_error_m": float(error.median()), "within_2cm": float((error < 0.02).float().mean())}

    @property
    def _num_objects(self) -> int:
        return self._objects.shape[1]

    def _named(self, indices: Indices, wording: Indices, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions [B * objects, 2, 3] of what the prompts of ``wording`` [B, objects] name, and whether they do."""
        targets = self._targets[torch.from_numpy(wording), torch.arange(self._num_objects)]  # [B, objects, 2]
        rows = torch.from_numpy(indices)[:, None, None]
        positions = self._objects[rows, targets.clamp(min=0)].flatten(0, 1)
        return positions.to(device), (targets >= 0).flatten(0, 1).float().to(device)

    def _inputs(self, images: Tensor, masks: Tensor, wording: Indices) -> ModelInputs:
        """One row per image and object, in the ``wording`` [B, objects]."""
        n, device = self._num_objects, images.device
        rows = torch.from_numpy(wording), torch.arange(n)
        return ModelInputs(
            images=images,
            image_masks=masks,
            tokens=self._tokens[rows].flatten(0, 1).to(device),
            token_mask=self._token_masks[rows].flatten(0, 1).to(device),
            state=torch.zeros(len(images) * n, self._state_dim, device=device),
        )


def locate(learner: Learner, inputs: ModelInputs) -> Tensor:
    """Normalised positions [B, 2, 3] of the objects the prompts name."""
    return learner.head(learner.policy.encode_prefix(inputs).hidden, inputs.token_mask)


def _check_templates(templates: Sequence[str]) -> None:
    if not templates:
        raise ConfigError("Grounding needs wordings such as 'touch the {object}', got none.")
    for template in templates:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if not {"object"} <= names <= {"object", "other"}:
            raise ConfigError(f"Wording {template!r} has {sorted(names)}; expected {{object}} and perhaps {{other}}.")


def _encode_templates(
    templates: Sequence[str], dataset: Dataset, transforms: PolicyTransforms
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and masks [wordings, objects, T] and the objects they name [wordings, objects, 2], -1 for none.

    A wording with ``{other}`` comes once per distance to the other one.
    """
    names = dataset.object_names
    prompts: list[str] = []
    targets: list[tuple[int, int]] = []
    for template in templates:
        for step in range(1, len(names)) if "{other}" in template else [0]:
            for index, name in enumerate(names):
                other = (index + step) % len(names)
                prompts.append(template.format(object=name, other=names[other]))
                targets.append((index, other if step else -1))
    states = np.tile(transforms.norm_stats.state.mean.astype(np.float32), (len(prompts), 1))
    tokens, masks = encode_prompts(prompts, states, transforms)
    parts = (tokens, masks, torch.tensor(targets))
    return tuple(part.unflatten(0, (-1, len(names))) for part in parts)
