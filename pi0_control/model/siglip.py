"""SigLIP: image -> tokens. A patch (or convolutional) stem, learned positions, pre-LayerNorm blocks, a linear head."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi0_control.model.attention import Attention, Backend
from pi0_control.model.config import SiglipConfig
from pi0_control.model.crew import Part, Stop, are_enough, run_parts
from pi0_control.model.recompute import run_layer

if TYPE_CHECKING:
    from pi0_control.model.packed import Block, Kernels, PackedBlocks

LAYER_NORM_EPS = 1e-6


def conv_stem(config: SiglipConfig) -> nn.Sequential:
    """Stride-2 convolutions through ``stem_channels``, each with GroupNorm and SiLU, then a 2x2 one to ``width``."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise((3, *config.stem_channels))):
        kernel = 5 if index == 0 else 3
        layers += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(config.stem_channels[-1], config.width, 2, stride=2))


class SiglipBlock(nn.Module):
    """Pre-norm transformer block with biases, full attention and a GELU MLP.

    The stream between the blocks is float32 whatever the weights are: rounding it to bfloat16 would be most of the
    error of a bfloat16 model.
    """

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(config.width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.width)

    @property
    def matrices(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        """Those that every token is multiplied by: qkv, out, fc1, fc2."""
        return self.qkv, self.out, self.fc1, self.fc2

    def hidden(self, y: Tensor) -> Tensor:
        """The first half of the MLP, [B, tokens, width] -> [B, tokens, mlp_dim]."""
        return F.gelu(self.fc1(y), approximate="tanh")

    def forward(self, x: Tensor, attention: Attention, kernels: "Kernels | None" = None) -> Tensor:
        """x [B, tokens, width] -> the same shape, both float32; ``kernels`` stand in for the block's own products."""
        qkv, out, hidden, down = kernels or (self.qkv, self.out, self.hidden, self.fc2)
        q, k, v = qkv(_normed(self.norm1, x)).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        x = x + out(attention(q, k, v))
        return x + down(hidden(_normed(self.norm2, x)))


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """The float32 stream x [B, tokens, width], normed in float32, in the dtype of the weights."""
    y = F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
    return y.to(norm.weight.dtype)


class Siglip(nn.Module):
    """The image encoder with its projection to the width of the prefix."""

    def __init__(self, config: SiglipConfig, out_width: int, backend: Backend = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.attention = Attention(None, "eager" if backend == "eager" else "sdpa")  # nothing to mask for flex
        if config.stem == "conv":
            self.stem: nn.Module = conv_stem(config)
        else:
            self.stem = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.position = nn.Parameter(torch.empty(config.num_tokens, config.width))
        nn.init.normal_(self.position, std=config.width**-0.5)
        self.blocks = nn.ModuleList(SiglipBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.width, out_width)

    def forward(self, images: Tensor, packed: "PackedBlocks | None" = None) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] -> tokens [B, num_tokens, out_width], row by row, not scaled.

        ``packed`` blocks stand in for its own, without a gradient.
        """
        x = self.stem(images.to(self.position.dtype)).flatten(2).transpose(1, 2)
        x = (x + self.position).float()
        if packed:
            images = x.split(1 if packed.by_one_thread or are_enough(len(x)) else len(x))
            parts = [self._run_part(each, packed.blocks) for each in images]
            x = torch.cat(run_parts(parts, even_few=packed.by_one_thread))
        else:
            for block in self.blocks:
                x = run_layer(self.gradient_checkpointing, block, x, self.attention)
        return self.head(_normed(self.norm, x))

    def _run_part(self, x: Tensor, blocks: "Sequence[Block]") -> Part[Tensor]:
        """Some images through all blocks, [images, tokens, width] -> the same shape."""
        for block in blocks:
            x = block(x, self.attention)
            yield Stop.PASS
        return x
