"""The named parts of the network, as they are frozen or adapted in fine-tuning."""

from collections.abc import Collection, Iterator
from typing import Literal, get_args

from torch import nn

from pi0_control.model.pi0 import Pi0

Part = Literal["vision", "language", "action_expert", "projections"]
PARTS: tuple[Part, ...] = get_args(Part)
_LANGUAGE = ("embedding", "prefix_layers", "prefix_norm")
_PART_OF: dict[str, Part] = {"vision": "vision", "suffix_layers": "action_expert", "suffix_norm": "action_expert"}


def part_of(name: str) -> Part:
    """The part that a parameter or module of this (dotted) name in a :class:`Pi0` belongs to.

    ``vision`` is the image encoder with its projection, ``language`` the embedding and the expert of the prefix,
    ``action_expert`` that of the suffix, ``projections`` everything between the action expert and state, actions and
    time.
    """
    first = name.split(".")[0]
    return "language" if first in _LANGUAGE else _PART_OF.get(first, "projections")


def parameters_of(model: Pi0, parts: Collection[Part]) -> Iterator[nn.Parameter]:
    """Parameters of some parts."""
    return (parameter for name, parameter in model.named_parameters() if part_of(name) in parts)


def freeze(model: Pi0, parts: Collection[Part]) -> None:
    """Take some parts out of training: they get no gradient, hence no optimiser state and no weight decay."""
    for parameter in parameters_of(model, parts):
        parameter.requires_grad_(False)
