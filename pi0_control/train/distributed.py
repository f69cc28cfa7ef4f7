"""World: the processes that train one policy together, one per device; a single process is a world of one.

Every rank draws the random numbers of the whole batch and keeps its own rows, and the losses of a rank are its share
of those of the whole batch, so they and their gradients sum up to what one process would compute.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pi0_control.errors import ConfigError
from pi0_control.model.gemma import GemmaLayer
from pi0_control.model.siglip import SiglipBlock
from pi0_control.policy.policy import resolve_device
from pi0_control.train.config import TrainConfig

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Rows = TypeVar("Rows", Tensor, np.ndarray)
Module = TypeVar("Module", bound=nn.Module)

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(hours=6)  # the others wait while the main rank decodes videos; torchrun ends them if it fails
_LAYER_METHODS = ("queries_keys_values", "finish")  # what a GemmaLayer has in place of forward


@dataclass(frozen=True)
class World:
    """One process among those that train together.

    Attributes:
        rank: 0 is the main one, which writes all files and shows the progress.
        size: number of processes.
        device: of this process.
        parallel: ``ddp`` (every process holds all weights) or ``fsdp`` (each holds a part of them).
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    parallel: str = "ddp"

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return self.size > 1 and self.parallel == "fsdp"

    def check_batch(self, name: str, batch: int) -> None:
        """Refuse a batch that the processes cannot share evenly with a ConfigError."""
        if batch % self.size:
            raise ConfigError(f"{name} is {batch}; expected a multiple of the {self.size} processes.")

    def rows(self, batch: Rows) -> Rows:
        """This rank's rows of something drawn for the whole batch [B, ..]."""
        rows = len(batch) // self.size
        return batch[self.rank * rows : (self.rank + 1) * rows]

    def sum(self, part: Tensor) -> Tensor:
        """Sum over the ranks, without a gradient."""
        if self.size > 1:
            part = part.detach().clone()
            dist.all_reduce(part)
        return part

    def share(self, mask: Tensor) -> Tensor:
        """A mask of ones and zeros divided by the number of ones on all ranks together; no ones stay none."""
        return mask / self.sum(mask.sum()).clamp(min=1)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main rank goes through the body before the others do."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def place(self, module: Module) -> Module:
        """The module on this process's device; of sharded weights (FSDP2) each rank keeps its part there.

        A sharded layer is whole only while it computes.
        """
        if not self.is_sharded:
            return module.to(self.device)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # nobody writes into it
        mesh = init_device_mesh(self.device.type, (self.size,))
        layers = [part for part in module.modules() if isinstance(part, (GemmaLayer, SiglipBlock))]
        for part in (*layers, module):
            sharded = fully_shard(part, mesh=mesh, reshard_after_forward=True)  # also the outermost, which is validated
            sharded.set_force_sum_reduction_for_comms(True)  # gloo cannot average
            for method in _LAYER_METHODS if isinstance(part, GemmaLayer) else ():
                register_fsdp_forward_method(part, method)
        return module

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module, or its wrapper (DDP) that averages the gradients of a forward pass over the ranks."""
        if self.size == 1 or self.is_sharded:
            return module
        return nn.parallel.DistributedDataParallel(module, static_graph=True)  # a stage may leave the same parts unused

    def clip_gradients(self, module: nn.Module, limit: float) -> Tensor:
        """Scale the gradients down where their norm exceeds the limit; the norm [] was that, the same on all ranks."""
        norm = nn.utils.clip_grad_norm_(module.parameters(), limit)
        return norm.full_tensor() if self.is_sharded and _is_part(norm) else norm

    def gather(self, state: Any) -> Any:
        """A state dict with whole tensors, on the main rank; to be called on all of them."""
        if not self.is_sharded:
            return state
        if isinstance(state, Mapping):
            return {key: self.gather(value) for key, value in state.items()}
        if not _is_part(state):
            return state
        whole = state.full_tensor()
        return whole.cpu() if self.is_main else None

    def load_weights(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Load whole tensors into a module that may be sharded."""
        own = module.state_dict()
        module.load_state_dict({name: self._part(value, own.get(name, value)) for name, value in state.items()})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Load an optimizer's state of whole tensors, where its parameters may be sharded."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parts = {
            index: {name: self._part(value, parameters[index]) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": parts})

    def _part(self, whole: Tensor, like: Tensor) -> Tensor:
        """This rank's part of a tensor, if it has the shape of a sharded one."""
        if not (self.is_sharded and _is_part(like) and whole.shape == like.shape):
            return whole
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole.to(self.device), like.device_mesh, like.placements, src_data_rank=None)


def _is_part(value: Any) -> "TypeGuard[DTensor]":
    from torch.distributed.tensor import DTensor  # slow to import

    return isinstance(value, DTensor)


def is_main_process() -> bool:
    """Whether this process is the one that speaks to the user, also before and after its world."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join_world(config: TrainConfig) -> Iterator[World]:
    """Meet the processes that torchrun started; alone without it. GPUs talk through NCCL, CPUs through gloo.

    Raises:
        ConfigError: incomplete or contradictory variables of torchrun, or no such device.
    """
    rank, size, local_rank = _read_environment(os.environ)
    device = resolve_device(config.device)
    if size == 1:
        yield World(device=device)
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        if device.index is not None:
            raise ConfigError(f"device is {config.device!r}; expected 'cuda': each process takes its own.")
        device = resolve_device(f"cuda:{local_rank}")
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE, device_id=device if on_gpu else None)
    try:
        yield World(rank, size, device, config.parallel)
    finally:
        dist.destroy_process_group()


def _read_environment(variables: Mapping[str, str]) -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine."""
    if variables.get("WORLD_SIZE", "1") == "1":
        return 0, 1, 0
    missing = [name for name in _TORCHRUN if name not in variables]
    if missing:
        raise ConfigError(f"WORLD_SIZE is set but {missing[0]} is not; expected both from torchrun, or neither.")
    try:
        rank, size, local_rank = (int(variables[name]) for name in _TORCHRUN[:3])
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}.") from error
    if not 0 <= rank < size:
        raise ConfigError(f"RANK is {rank}; expected 0 to {size - 1}, below WORLD_SIZE.")
    return rank, size, local_rank
