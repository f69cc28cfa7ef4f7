"""LoRA: fine-tune a matrix W as W + A B with A B of low rank, and merge it when the training is over.

Written out rather than taken from the peft package, which brings transformers and accelerate with it. Source: "LoRA:
Low-Rank Adaptation of Large Language Models".
"""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi0_control.errors import ConfigError
from pi0_control.model.parts import Part, freeze, part_of
from pi0_control.model.pi0 import Pi0

_MATRICES = ("qkv", "out", "gate_up", "down", "fc1", "fc2")  # of a layer of an expert or of the image encoder


class LoraLinear(nn.Linear):
    """A frozen linear layer plus ``alpha / rank * x A^T B^T``; B is zero at the start, so nothing changes at first.

    Args:
        base: the layer to adapt; its weights are taken over, not copied.
        rank: width of A [rank, in] and B [out, rank].
        alpha: weight of the adapter; with ``rank`` it is one.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        with torch.device("meta"):  # nothing to initialise
            super().__init__(base.in_features, base.out_features, base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.scaling = alpha / rank
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(base.out_features, rank))
        nn.init.normal_(self.lora_a, std=base.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return super().forward(x) + self.scaling * F.linear(F.linear(x, self.lora_a), self.lora_b)


def add_lora(model: Pi0, parts: Collection[Part], rank: int, alpha: float) -> None:
    """Freeze some parts and put adapters beside the matrices of their layers, in place.

    Raises:
        ConfigError: a part has no such matrix, as the image encoder of ``mini``.
    """
    freeze(model, parts)
    for part in parts:
        bases = [
            (module, child, base)
            for name, module in model.named_modules()
            if part_of(name) == part
            for child in _MATRICES
            if isinstance(base := getattr(module, child, None), nn.Linear)
        ]
        if not bases:
            raise ConfigError(
                f"The model's {part} has no layers for adapters (LoRA); expected it in freeze or nowhere."
            )
        for module, child, base in bases:
            setattr(module, child, LoraLinear(base, rank, alpha))


@torch.no_grad()
def merged_state(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state dict of the model without adapters that does the same as one with them, from that one's."""
    merged = {name: value for name, value in state.items() if ".lora_" not in name}
    for name, lora_a in state.items():
        if name.endswith(".lora_a"):
            layer, scaling = name.removesuffix(".lora_a"), alpha / len(lora_a)
            merged[f"{layer}.weight"] = state[f"{layer}.weight"] + scaling * (state[f"{layer}.lora_b"] @ lora_a)
    return merged
