"""Normalisation of state and actions: z-score (π0), quantiles (π0.5) or the whole range, and the statistics they need.

The files are openpi's ``norm_stats.json``, or what LeRobot's processors keep. Nothing is clipped: values beyond ±1 are
legal. Vectors may be longer or shorter than the statistics; what has no statistics passes through unchanged.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi0_control.errors import CheckpointError, ConfigError, DatasetError

NormKind = Literal["z_score", "quantile", "min_max"]
NormRule = Literal["openpi", "lerobot"]
OPENPI_EPS, LEROBOT_EPS = 1e-6, 1e-8
LEROBOT_FEATURES = ("observation.state", "action")
BOUNDS: dict[NormKind, tuple[str, str]] = {"quantile": ("q01", "q99"), "min_max": ("min", "max")}


@dataclass(frozen=True)
class VectorStats:
    """Statistics of one vector quantity, each float64 [D]; all but mean and std may be absent."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    q01: NDArray[np.float64] | None = None
    q99: NDArray[np.float64] | None = None
    min: NDArray[np.float64] | None = None
    max: NDArray[np.float64] | None = None

    def normalize(
        self, values: ArrayLike, kind: NormKind, eps: float = OPENPI_EPS, rule: NormRule = "openpi"
    ) -> NDArray[np.float32]:
        """Physical values [..., n] to model space, float32 [..., n].

        ``z_score``: (x - mean) / (std + eps); ``quantile``: (x - q01) / (q99 - q01 + eps) * 2 - 1; ``min_max``: the
        same with min and max. The rule ``lerobot`` has eps only in place of a span of zero, and beside std only here.

        Raises:
            ConfigError: statistics that the kind needs are absent, or there is no such kind.
        """
        offset, scale, shift = self._affine(kind, eps if kind == "z_score" else self._margin(kind, eps, rule), values)
        with np.errstate(over="ignore"):  # infinite then; a policy refuses what comes of it
            return ((np.asarray(values, np.float64) - offset) / scale + shift).astype(np.float32)

    def unnormalize(
        self, values: ArrayLike, kind: NormKind, eps: float = OPENPI_EPS, rule: NormRule = "openpi"
    ) -> NDArray[np.float32]:
        """The inverse of :meth:`normalize`, with the same errors; by LeRobot's rule all but the z-score's eps."""
        offset, scale, shift = self._affine(kind, self._margin(kind, eps, rule), values)
        return ((np.asarray(values, np.float64) - shift) * scale + offset).astype(np.float32)

    def bounds(self, kind: NormKind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What becomes -1 and 1; by z-score one standard deviation around the mean.

        Raises:
            ConfigError: statistics that the kind needs are absent, or there is no such kind.
        """
        if kind == "z_score":
            return self.mean - self.std, self.mean + self.std
        if kind not in BOUNDS:
            raise ConfigError(f"Unknown normalisation {kind!r}; expected one of {list(get_args(NormKind))}.")
        lower, upper = (getattr(self, name) for name in BOUNDS[kind])
        if lower is None or upper is None:
            names = [name for name, value in vars(self).items() if value is not None]
            raise ConfigError(f"Normalisation {kind!r} needs {' and '.join(BOUNDS[kind])}; there are only {names}.")
        return lower, upper

    def _margin(self, kind: NormKind, eps: float, rule: NormRule) -> NDArray[np.float64] | float:
        """What is added to the denominator."""
        if rule == "openpi":
            return eps
        lower, upper = self.bounds(kind)
        return 0.0 if kind == "z_score" else np.where(upper == lower, eps, 0.0)

    def _affine(
        self, kind: NormKind, margin: NDArray[np.float64] | float, values: ArrayLike
    ) -> tuple[NDArray[np.float64], ...]:
        """Offset, scale and shift of x -> (x - offset) / scale + shift, each as long as the values."""
        length = np.shape(values)[-1]
        lower, upper = self.bounds(kind)
        if kind == "z_score":
            parts = self.mean, self.std + margin, np.zeros_like(self.mean)
        else:
            parts = lower, (upper - lower + margin) / 2, -np.ones_like(lower)
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

    @classmethod
    def from_lerobot(cls, tensors: Mapping[str, ArrayLike], source: str = "statistics") -> "NormStats":
        """From what LeRobot's normaliser keeps: ``observation.state.mean`` [D], ``action.q01`` and so on.

        Raises:
            CheckpointError: no mean and std of both, or other vectors than finite ones of one length.
        """
        features = {
            feature: {name: tensors[f"{feature}.{name}"] for name in _STATISTICS if f"{feature}.{name}" in tensors}
            for feature in LEROBOT_FEATURES
        }
        return cls(*(_read_vector_stats(values, f"{source}: {name}") for name, values in features.items()))

    def to_lerobot(self) -> dict[str, NDArray[np.float64]]:
        """The inverse of :meth:`from_lerobot`, float64 [D] each; LeRobot takes them to float32."""
        return {
            f"{feature}.{name}": value
            for feature, stats in zip(LEROBOT_FEATURES, (self.state, self.actions), strict=True)
            for name, value in vars(stats).items()
            if value is not None
        }

    def save(self, path: str | Path) -> None:
        """Write ``norm_stats.json``: openpi's, and min and max where they are known."""
        groups = {
            name: {
                key: None if value is None else value.tolist()
                for key, value in vars(stats).items()
                if value is not None or key not in BOUNDS["min_max"]
            }
            for name, stats in (("state", self.state), ("actions", self.actions))
        }
        Path(path).write_text(json.dumps({"norm_stats": groups}, indent=2) + "\n", encoding="utf-8")


def _read_vector_stats(values: Any, source: str) -> VectorStats:
    if not isinstance(values, Mapping) or not {"mean", "std"} <= set(values) <= set(_STATISTICS):
        got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
        raise CheckpointError(f"{source} has {got}; expected mean, std and perhaps {', '.join(_STATISTICS[2:])}.")
    vectors: dict[str, NDArray[np.float64] | None] = {}
    for key in _STATISTICS:
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
    others = (vectors[key] for key in _STATISTICS[2:])
    return VectorStats(mean, std, *others)


_STATISTICS = tuple(item.name for item in fields(VectorStats))


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
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The least and the largest values so far, each [D]."""
        return self._lower, self._upper

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
