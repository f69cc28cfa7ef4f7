"""Statistics of features as LeRobot stores them: per episode, and merged over episodes.

One feature's statistics are a mapping of ``min, max, mean, std, count, q01, q10, q50, q90, q99`` to float64 arrays.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Stats = dict[str, NDArray[np.float64]]
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def vector_stats(values: NDArray[Any]) -> Stats:
    """Statistics of vectors [n, d], each an array [d]; ``count`` is [1]."""
    x = np.asarray(values, np.float64)
    stats = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    stats["count"] = np.array([len(x)], np.float64)
    quantiles = np.quantile(x, list(QUANTILES.values()), axis=0)
    return stats | dict(zip(QUANTILES, quantiles, strict=True))


def image_histogram(image: NDArray[np.uint8], every: int = 4) -> NDArray[np.int64]:
    """Counts [3, 256] of the channel values of every ``every``-th pixel of an RGB image [H, W, 3]."""
    pixels = image[::every, ::every].reshape(-1, 3)
    offsets = pixels.astype(np.int64) + np.arange(3) * 256
    return np.bincount(offsets.ravel(), minlength=3 * 256).reshape(3, 256)


def image_stats(histogram: NDArray[np.int64], frames: int) -> Stats:
    """Statistics of images in [0, 1], each an array [3, 1, 1], from their summed histogram [3, 256]."""
    levels = np.arange(256) / 255.0
    weights = histogram / histogram.sum(1, keepdims=True)
    cumulative = np.cumsum(weights, 1)
    mean = weights @ levels
    stats = {
        "min": levels[np.argmax(histogram > 0, 1)],
        "max": levels[255 - np.argmax(histogram[:, ::-1] > 0, 1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(weights @ levels**2 - mean**2, 0.0)),
    }
    stats |= {name: levels[np.argmax(cumulative >= q - 1e-12, 1)] for name, q in QUANTILES.items()}
    shaped = {name: value.reshape(3, 1, 1) for name, value in stats.items()}
    return shaped | {"count": np.array([frames], np.float64)}


def merge_stats(a: Stats, b: Stats) -> Stats:
    """Statistics of two sets together: exact, except that quantiles are the count-weighted mean of both."""
    total = a["count"] + b["count"]
    wa, wb = a["count"] / total, b["count"] / total
    mean = wa * a["mean"] + wb * b["mean"]
    square = wa * (a["std"] ** 2 + a["mean"] ** 2) + wb * (b["std"] ** 2 + b["mean"] ** 2)
    merged = {name: wa * a[name] + wb * b[name] for name in QUANTILES}
    merged |= {"min": np.minimum(a["min"], b["min"]), "max": np.maximum(a["max"], b["max"])}
    return merged | {"mean": mean, "std": np.sqrt(np.maximum(square - mean**2, 0.0)), "count": total}


def merge_all(a: Mapping[str, Stats], b: Mapping[str, Stats]) -> dict[str, Stats]:
    """Merge feature by feature; an empty mapping stands for no data."""
    if not a or not b:
        return dict(a or b)
    return {feature: merge_stats(a[feature], b[feature]) for feature in a}


def to_lists(stats: Mapping[str, Stats]) -> dict[str, dict[str, Any]]:
    """The content of stats.json."""
    return {feature: {name: _plain(name, value) for name, value in entry.items()} for feature, entry in stats.items()}


def _plain(name: str, value: NDArray[np.float64]) -> Any:
    return value.astype(np.int64).tolist() if name == "count" else value.tolist()


def from_lists(row: Mapping[str, Any]) -> dict[str, Stats]:
    """Statistics out of an episode's row, where they lie in columns ``stats/<feature>/<name>``."""
    stats: dict[str, Stats] = {}
    for column, value in row.items():
        prefix, _, rest = column.partition("/")
        feature, _, name = rest.rpartition("/")
        if prefix == "stats":
            stats.setdefault(feature, {})[name] = np.asarray(value, np.float64)
    return stats
