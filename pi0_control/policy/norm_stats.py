"""Normalisation of state and actions: z-score (π0) or quantiles (π0.5), and the statistics they need.

The files are openpi's ``norm_stats.json``. Nothing is clipped: values beyond ±1 are legal. Vectors may be longer or
shorter than the statistics; what has no statistics passes through unchanged.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi0_control.errors import CheckpointError, ConfigError, DatasetError

NormKind = Literal["z_score", "quantile"]
OPENPI_EPS = 1e-6


@dataclass(frozen=True)
class VectorStats:
    """Statistics of one vector quantity, each float64 [D]; the quantiles may be absent."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    q01: NDArray[np.float64] | None = None
    q99: NDArray[np.float64] | None = None

    def normalize(self, values: ArrayLike, kind: NormKind, eps: float = OPENPI_EPS) -> NDArray[np.float32]:
        """Physical values [..., n] to model space, float32 [..., n].

        ``z_score``: (x - mean) / (std + eps); ``quantile``: (x - q01) / (q99 - q01 + eps) * 2 - 1.

        Raises:
            ConfigError: ``quantile`` without quantiles, or an unknown kind.
        """
        offset, scale, shift = self._affine(kind, eps, np.shape(values)[-1])
        return ((np.asarray(values, np.float64) - offset) / scale + shift).astype(np.float32)

    def unnormalize(self, values: ArrayLike, kind: NormKind, eps: float = OPENPI_EPS) -> NDArray[np.float32]:
        """The inverse of :meth:`normalize`, with the same errors."""
        offset, scale, shift = self._affine(kind, eps, np.shape(values)[-1])
        return ((np.asarray(values, np.float64) - shift) * scale + offset).astype(np.float32)

    def _affine(self, kind: NormKind, eps: float, length: int) -> tuple[NDArray[np.float64], ...]:
        """Offset, scale and shift of x -> (x - offset) / scale + shift, each [length]."""
        if kind == "z_score":
            parts = self.mean, self.std + eps, np.zeros_like(self.mean)
        elif kind != "quantile":
            raise ConfigError(f"Unknown normalisation {kind!r}; expected 'z_score' or 'quantile'.")
        elif self.q01 is None or self.q99 is None:
            raise ConfigError("Quantile normalisation needs q01 and q99; these statistics have only mean and std.")
        else:
            parts = self.q01, (self.q99 - self.q01 + eps) / 2, -np.ones_like(self.q01)
        missing = max(0, length - len(self.mean))
        offset, scale, shift = (part[:length] for part in parts)
        return (
            np.pad(offset, (0, missing)),
            np.pad(scale, (0, missing), constant_values=1.0),
            np.pad(shift, (0, missing)),
        )


@dataclass(frozen=True)
class NormStats:
    """What a policy knows about the values of its robot; ``actions`` as the model predicts them (deltas included)."""

    state: VectorStats
    actions: VectorStats

    @classmethod
    def load(cls, path: str | Path) -> "NormStats":
        """Read ``norm_stats.json``.

        Raises:
            CheckpointError: no such file, not JSON, or not complete statistics of ``state`` and ``actions``.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"No statistics file {path}.") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"Statistics file {path} is not valid JSON: {error}.") from error
        groups = content.get("norm_stats") if isinstance(content, dict) else None
        if not isinstance(groups, dict) or not {"state", "actions"} <= set(groups):
            got = sorted(groups) if isinstance(groups, dict) else type(groups).__name__
            raise CheckpointError(f"Statistics file {path} has {got} under 'norm_stats'; expected state and actions.")
        return cls(*(_read_vector_stats(groups[name], f"{path}: {name}") for name in ("state", "actions")))

    def save(self, path: str | Path) -> None:
        """Write ``norm_stats.json``."""
        groups = {
            name: {key: None if value is None else value.tolist() for key, value in vars(stats).items()}
            for name, stats in (("state", self.state), ("actions", self.actions))
        }
        Path(path).write_text(json.dumps({"norm_stats": groups}, indent=2) + "\n", encoding="utf-8")


def _read_vector_stats(values: Any, source: str) -> VectorStats:
    keys = ("mean", "std", "q01", "q99")
    if not isinstance(values, Mapping) or not {"mean", "std"} <= set(values) <= set(keys):
        got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
        raise CheckpointError(f"{source} has {got}; expected mean, std and perhaps q01, q99.")
    vectors: dict[str, NDArray[np.float64] | None] = {}
    for key in keys:
        try:
            vectors[key] = None if values.get(key) is None else np.array(values[key], np.float64)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{source}.{key} is not a list of numbers.") from error
    mean, std = vectors["mean"], vectors["std"]
    if mean is None or std is None:
        raise CheckpointError(f"{source} has no mean or no std.")
    present = [vector for vector in vectors.values() if vector is not None]
    if not all(vector.shape == mean.shape and vector.ndim == 1 and np.isfinite(vector).all() for vector in present):
        shapes = [list(vector.shape) for vector in present]
        raise CheckpointError(f"{source} has vectors of shapes {shapes}; expected finite ones of one length.")
    if (std < 0).any():
        raise CheckpointError(f"{source}.std has a negative entry; expected none.")
    return VectorStats(mean, std, vectors["q01"], vectors["q99"])


class RunningStats:
    """Statistics of a stream of vectors [D] in one pass: exact mean and standard deviation, quantiles from histograms.

    Each histogram spans the values seen so far; when the span grows, the old counts move to the bins that hold their
    centres. A quantile is the left edge of its bin, so it is at most two bins off.
    """

    def __init__(self, dim: int, bins: int = 5000) -> None:
        self.count = 0
        self._mean = np.zeros(dim)
        self._squares = np.zeros(dim)  # sum of squared distances to the mean
        self._lower = np.zeros(dim)
        self._upper = np.zeros(dim)
        self._histogram = np.zeros((dim, bins))

    def update(self, values: ArrayLike) -> None:
        """Add vectors [..., D].

        Raises:
            DatasetError: another width, or a NaN or infinity among them.
        """
        batch = np.asarray(values, np.float64)
        if batch.shape[-1:] != self._mean.shape or not np.isfinite(batch).all():
            raise DatasetError(
                f"Got values of shape {list(batch.shape)}; expected finite ones [.., {len(self._mean)}]."
            )
        batch = batch.reshape(-1, len(self._mean))
        if not len(batch):
            return
        total = self.count + len(batch)
        mean, distance = batch.mean(axis=0), batch.mean(axis=0) - self._mean
        self._squares += ((batch - mean) ** 2).sum(axis=0) + distance**2 * self.count * len(batch) / total
        self._mean += distance * len(batch) / total
        self._widen(batch.min(axis=0), batch.max(axis=0))
        self._add(batch.T, np.ones_like(batch.T))
        self.count = total

    def result(self) -> VectorStats:
        """The statistics so far.

        Raises:
            DatasetError: nothing was added yet.
        """
        if not self.count:
            raise DatasetError("No values to take statistics of; expected at least one.")
        std = np.sqrt(self._squares / self.count)
        return VectorStats(self._mean.copy(), std, self._quantile(0.01), self._quantile(0.99))

    @property
    def _width(self) -> NDArray[np.float64]:
        return (self._upper - self._lower) / self._histogram.shape[1]

    def _widen(self, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> None:
        if self.count:
            lower, upper = np.minimum(lower, self._lower), np.maximum(upper, self._upper)
            if np.array_equal(lower, self._lower) and np.array_equal(upper, self._upper):
                return
        counts, bins = self._histogram, self._histogram.shape[1]
        centres = self._lower[:, None] + self._width[:, None] * (np.arange(bins) + 0.5)
        self._lower, self._upper, self._histogram = lower, upper, np.zeros_like(counts)
        self._add(centres, counts)

    def _add(self, values: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Count values [D, n] with their weights [D, n]."""
        dim, bins = self._histogram.shape
        width = np.where(self._width > 0, self._width, 1.0)[:, None]
        index = np.clip(((values - self._lower[:, None]) / width).astype(np.int64), 0, bins - 1)
        flat = (index + bins * np.arange(dim)[:, None]).ravel()
        self._histogram += np.bincount(flat, weights.ravel(), dim * bins).reshape(dim, bins)

    def _quantile(self, share: float) -> NDArray[np.float64]:
        reached = self._histogram.cumsum(axis=1) >= share * self.count
        return self._lower + reached.argmax(axis=1) * self._width
