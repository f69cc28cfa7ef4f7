"""The products of the prefix in float8: twice the rate of bfloat16 on a GPU that has it, for a larger error.

Each row of what is multiplied, tokens and columns of the matrix, has a scale of its own, so that its largest number is
the largest of float8 (e4m3). The products are summed in float32, and not in the some 14 bits in which a GPU is a little
faster. The rest, the suffix and the image encoder too, stays bfloat16: a denoising step waits for memory, and its error
would end up in the actions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType

from pi0_control.errors import ConfigError
from pi0_control.model.gemma import GemmaLayer, gated
from pi0_control.model.packed import Kernels
from pi0_control.model.pi0 import Pi0

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
LEAST_SCALE = 1e-12  # of a row of zeros
MULTIPLE = 16  # of the sizes of a matrix


class ScaledRows(NamedTuple):
    """A matrix ``values * scale``: float8 [rows, columns] times float32 [rows, 1]."""

    values: Tensor
    scale: Tensor


def scaled_rows(x: Tensor) -> ScaledRows:
    """The matrix x [rows, columns] in float8."""
    wide = x.float()
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=LEAST_SCALE)
    return ScaledRows((wide / scale).to(FLOAT8), scale)


class Float8Matrix:
    """Stands in for a linear layer without bias, [.., in] -> [.., out] in the dtype of what comes in.

    Args:
        matrix: the layer, copied.
        scale_rows: what turns tokens [rows, in] into float8.
    """

    def __init__(self, matrix: nn.Linear, scale_rows: Callable[[Tensor], ScaledRows] = scaled_rows) -> None:
        self._weight, self._scale_rows = scaled_rows(matrix.weight.detach()), scale_rows

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        return self.multiply(self._scale_rows(x.flatten(0, -2)), x.dtype).unflatten(0, x.shape[:-1])

    def multiply(self, rows: ScaledRows, dtype: torch.dtype) -> Tensor:
        """The same of tokens [rows, in] that are in float8, in ``dtype``."""
        weight, per_row = self._weight, ScalingType.RowWise
        scales = (rows.scale, per_row, weight.scale.mT, per_row)
        return F.scaled_mm(rows.values, weight.values.mT, *scales, output_dtype=dtype)


def float8_kernels(layer: GemmaLayer) -> Kernels:
    """The products of a layer."""
    qkv, out, gate_up, down = map(Float8Matrix, layer.matrices)
    return Kernels(qkv, out, lambda y: gated(gate_up(y)), down)


def check_float8(model: Pi0) -> None:
    """Raise ConfigError, and say why, if the model cannot be computed in float8 where it is."""
    matrices, device = [matrix for layer in model.prefix_layers for matrix in layer.matrices], model.device
    if not all(type(matrix) is nn.Linear for matrix in matrices):
        raise ConfigError("float8 needs plain matrices; those of the prefix have adapters, to be merged first.")
    if odd := {size for matrix in matrices for size in matrix.weight.shape if size % MULTIPLE}:
        raise ConfigError(f"float8 needs matrices whose sizes are multiples of {MULTIPLE}; got {sorted(odd)}.")
    try:  # a GPU before compute capability 8.9 cannot, nor PyTorch 2.11 on a CPU
        small = nn.Linear(MULTIPLE, MULTIPLE, bias=False, device=device, dtype=torch.bfloat16)
        Float8Matrix(small)(small.weight.detach())
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"PyTorch {torch.__version__} cannot multiply float8 on {device}: {error}") from error
