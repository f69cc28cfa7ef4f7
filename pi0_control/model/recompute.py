"""Gradient checkpointing: a layer's activations are forgotten and computed again when the gradient needs them."""

from collections.abc import Callable
from typing import TypeVar

from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def run_layer(recompute: bool, layer: Callable[..., Result], *args: object) -> Result:
    """``layer(*args)``; with ``recompute`` only its arguments are kept for the backward pass.

    The layers draw no random numbers, so no generator's state is kept either.
    """
    if not recompute:
        return layer(*args)
    return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False)
