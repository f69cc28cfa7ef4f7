"""Time and memory: percentiles of synchronised calls, several contenders in turn, and the machine's own limits."""

import resource
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pi0_control.model.crew import in_one_go, run_parts
from pi0_control.model.float8 import Float8Matrix, scaled_rows
from pi0_control.model.packed import has_amx
from pi0_control.model.pi0 import Pi0
from pi0_control.model.sampler import now

Call = Callable[[dict[str, float]], Tensor]  # computes a chunk and may put the milliseconds of stages into the dict


@dataclass
class Samples:
    """What the calls of one contender took.

    Attributes:
        total_ms: wall clock of each call.
        cpu_ms: processor time of each call, all threads together; steadier than the clock on a shared machine.
        stages_ms: wall clock by stage.
        actions: the last chunk, float32 [B, horizon, action_dim].
    """

    total_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    actions: Tensor | None = None

    def take(self, call: Call, device: torch.device) -> None:
        """Time one call."""
        stages: dict[str, float] = {}
        started, processor = now(device), time.process_time()
        actions = call(stages)
        self.total_ms.append(1000 * (now(device) - started))
        self.cpu_ms.append(1000 * (time.process_time() - processor))
        for name, value in stages.items():
            self.stages_ms.setdefault(name.removesuffix("_ms"), []).append(value)
        self.actions = actions.float().cpu()

    def summary(self) -> dict[str, object]:
        """Figures for JSON [ms]."""
        return {
            "calls": len(self.total_ms),
            "total_ms": percentiles(self.total_ms),
            "cpu_ms": percentiles(self.cpu_ms),
            "stages_ms": {name: percentiles(values) for name, values in self.stages_ms.items()},
        }


def percentiles(values: list[float]) -> dict[str, float]:
    """Least, median, 95th and 99th percentile."""
    return _percentiles(values, {"min": 0, "median": 50, "p95": 95, "p99": 99})


def quartiles(values: list[float]) -> dict[str, float]:
    """Between which two values the middle half lies, and the median."""
    return _percentiles(values, {"p25": 25, "median": 50, "p75": 75})


def _percentiles(values: list[float], names: Mapping[str, float]) -> dict[str, float]:
    return {name: float(np.percentile(values, percent)) for name, percent in names.items()}


def interleave(calls: Mapping[str, Call], rounds: int, device: torch.device, warm_up: int = 1) -> dict[str, Samples]:
    """Every contender in turn, there and back (A B B A), so that a machine that slows down slows all of them."""
    samples = {name: Samples() for name in calls}
    for call in calls.values():
        for _ in range(warm_up):
            call({})
    for index in range(rounds):
        order = list(calls)[:: 1 if index % 2 == 0 else -1]
        for name in order:
            samples[name].take(calls[name], device)
    return samples


class VisionClock:
    """Times the image encoder of a model while it is entered; ``take`` gives the milliseconds since the last one."""

    def __init__(self, model: Pi0) -> None:
        self._model, self._spent_ms, self._stack = model, 0.0, ExitStack()

    def __enter__(self) -> "VisionClock":
        started = 0.0

        def before(*_: object) -> None:
            nonlocal started
            started = now(self._model.device)

        def after(*_: object) -> None:
            self._spent_ms += 1000 * (now(self._model.device) - started)

        for handle in (
            self._model.vision.register_forward_pre_hook(before),
            self._model.vision.register_forward_hook(after),
        ):
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self) -> float:
        """Milliseconds since the last call."""
        spent, self._spent_ms = self._spent_ms, 0.0
        return spent


@torch.no_grad()
def roofline(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> dict[str, float]:
    """What the machine reaches in the best of several tries: FLOP/s of a product of matrices, bytes/s of a copy.

    The product is PyTorch's or ours, whichever is faster.
    """
    size, length = _size(device), 2**26 if device.type == "cpu" else 2**28
    x = torch.randn(size, size, device=device).to(dtype)
    source = torch.zeros(length, device=device)
    target = torch.zeros_like(source)
    products: list[Callable[[], object]] = [lambda: x @ x]
    if device.type == "cpu" and dtype == torch.bfloat16 and has_amx():
        products.append(_tiled_product(x))
    return {
        "flops": 2 * size**3 / min(_best_s(product, device, repeats) for product in products),
        "bytes_per_s": 2 * 4 * length / _best_s(lambda: target.copy_(source), device, repeats),
    }


def _tiled_product(x: Tensor) -> Callable[[], object]:
    """x @ x.T of x [size, size] by the kernels for tile registers, 256 rows at a time."""
    from pi0_control.model.tiles import Matrix, Tiles  # needs Numba

    matrix, rows = Matrix(x), [Tiles.of(part[None]) for part in x.split(256)]
    return lambda: run_parts([in_one_go(partial(matrix, tokens)) for tokens in rows], even_few=True)


@torch.no_grad()
def float8_flops(device: torch.device, repeats: int = 5) -> float:
    """FLOP/s of a product of matrices in float8, in the best of several tries."""
    size = _size(device)
    matrix = Float8Matrix(nn.Linear(size, size, bias=False, device=device))
    rows = scaled_rows(torch.randn(size, size, device=device))
    return 2 * size**3 / _best_s(lambda: matrix.multiply(rows, torch.bfloat16), device, repeats)


def _size(device: torch.device) -> int:
    return 2048 if device.type == "cpu" else 8192


def _best_s(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    durations = []
    for _ in range(repeats + 1):
        started = now(device)
        call()
        durations.append(now(device) - started)
    return min(durations[1:])


def memory_gb(device: torch.device) -> float:
    """Most memory held so far [GB], of the device or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
