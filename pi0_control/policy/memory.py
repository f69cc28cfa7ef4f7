"""Memory of the device that policies are computed on."""

import gc

import torch


def device_memory_mb() -> float:
    """What torch holds of the CUDA device [MB]; 0 without one."""
    return torch.cuda.memory_reserved() / 1e6 if torch.cuda.is_initialized() else 0.0


def free_device_memory() -> None:
    """Give back what policies that are no longer referred to have held."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
