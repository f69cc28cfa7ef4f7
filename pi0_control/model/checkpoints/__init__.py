"""Weights on disk: found out, checked, loaded and written. Nothing is unpickled, nothing is loaded in part.

Our own names, with layers counted by {i}: ``vision.{stem,position,blocks.{i},norm,head}``, ``embedding``,
``prefix_layers.{i}`` and ``suffix_layers.{i}`` with ``norm1, qkv, out, norm2, gate_up, down``, ``prefix_norm``,
``suffix_norm`` and the projections as openpi calls them. Queries, keys and values are one matrix, gate and up another.
"""

from pi0_control.model.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pi0_control.model.checkpoints.hub import locate
from pi0_control.model.checkpoints.report import LoadReport
from pi0_control.model.checkpoints.writing import (
    load_weights,
    openpi_settings,
    openpi_tensors,
    save_openpi,
    save_weights,
)

__all__ = [
    "Checkpoint",
    "LoadReport",
    "load_weights",
    "locate",
    "open_checkpoint",
    "openpi_settings",
    "openpi_tensors",
    "save_openpi",
    "save_weights",
]
