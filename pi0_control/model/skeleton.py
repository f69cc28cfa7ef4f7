"""Modules as a skeleton: names, shapes and dtypes without values, for those who load all of them, or need none."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _NothingDrawn(TorchFunctionMode):
    """Random numbers of a normal distribution stay undrawn.

    Without memory PyTorch would draw them by its compiler, whose import takes a second; and with it comes Triton, which
    ends the process if Mesa's software renderer, another user of LLVM, is there already.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def skeletons() -> Iterator[None]:
    """Modules made meanwhile are skeletons, on the device ``meta``."""
    with torch.device("meta"), _NothingDrawn():
        yield
