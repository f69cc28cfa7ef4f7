"""The report of an evaluation: one self-contained HTML file made from ``results.json`` and the videos beside it.

The template draws its charts as plain SVG, so that they take the page's fonts, its width and its dark mode.
"""

import json
import math
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pi0_control.errors import ConfigError
from sims.evaluate import wilson_interval

TEMPLATE = Path(__file__).with_name("report.html.j2")
UNDISTURBED = "none"  # the suite that perturbs nothing
OUTCOMES = ("failure", "wrong object", "success")  # in the order of the gallery
BINS_PER_TICK, TAIL = 8, 1.6  # of the latency histogram, which ends at TAIL times p95

Run = dict[str, Any]  # one entry of "runs" in results.json


def write_report(path: Path, results: Path) -> None:
    """Write the page; it appears whole or not at all, and the same results give the same bytes.

    Args:
        path: the HTML file.
        results: ``results.json`` of ``pi0 eval``; its videos are found relative to it.

    Raises:
        ConfigError: ``results`` is no such file, or a video it names is missing or damaged.
    """
    page = _view(_read(results), results.parent)
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(percent=_percent, json=partial(json.dumps, indent=2, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(jinja.get_template(TEMPLATE.name).render(page), encoding="utf-8")
    unfinished.replace(path)


def _percent(share: float) -> str:
    """``98`` or ``97.5``: as exact as one decimal allows."""
    return f"{100 * share:.1f}".removesuffix(".0")


class _Leaf(NamedTuple):
    """What a value must be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any, most: float = math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= most


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_number(v, 1) for v in value) and value[0] <= value[1]


_TEXT = _Leaf("a text", lambda value: isinstance(value, str))
_FILE = _Leaf("a path or null", lambda value: value is None or isinstance(value, str))
_FLAG = _Leaf("true or false", lambda value: isinstance(value, bool))
_COUNT = _Leaf("a whole number from 0 on", lambda value: type(value) is int and value >= 0)
_NUMBER = _Leaf("a number from 0 on", _is_number)
_SHARE = _Leaf("a number from 0 to 1", lambda value: _is_number(value, 1))
_INTERVAL = _Leaf("two numbers from 0 to 1, the lower first", _is_interval)
_ARRAY = _Leaf("an array", lambda value: isinstance(value, list))
_OBJECT = _Leaf("an object", lambda value: isinstance(value, dict))


def _keys(names: str, leaf: _Leaf) -> dict[str, Any]:
    return dict.fromkeys(names.split(), leaf)


_EPISODE = {
    **_keys("seed steps", _COUNT),
    **_keys("is_success wrong_object", _FLAG),
    **{"prompt": _TEXT, "simulated_s": _NUMBER, "video": _FILE},
}
_RUN = {
    **_keys("policy suite task", _TEXT),
    **_keys("successes episodes", _COUNT),
    **_keys("success_rate wrong_object_rate", _SHARE),
    **_keys("mean_episode_steps mean_episode_s real_time_factor", _NUMBER),
    **{"wilson_95": _INTERVAL, "chunk_total_ms": [_NUMBER], "episode_results": [_EPISODE]},
}
_COMPARISON = {
    **_keys("policy against suite task", _TEXT),
    **_keys("both only_policy only_against neither", _COUNT),
    "p_value": _SHARE,
}
_RESULTS = {
    **_keys("seed episodes", _COUNT),
    **_keys("versions machine", _OBJECT),
    **{"policy": _TEXT, "runs": [_RUN], "comparisons": [_COMPARISON]},
}


def _read(path: Path) -> dict[str, Any]:
    """The content of ``results.json``, every entry of the kind that ``pi0 eval`` writes."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: no results of pi0 eval to report ({error.strerror}).") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no results.json of pi0 eval: it is not JSON ({error}).") from error
    if problem := next(_problems(results, _RESULTS, "the file"), None):
        raise ConfigError(f"{path} is no results.json of pi0 eval: {problem}.")
    if not any(run["policy"] == results["policy"] for run in results["runs"]):
        raise ConfigError(f"{path} is no results.json of pi0 eval: no run is of its policy, {results['policy']}.")
    return results


def _problems(value: Any, shape: Any, where: str) -> Iterator[str]:
    leaf = shape if isinstance(shape, _Leaf) else _ARRAY if isinstance(shape, list) else _OBJECT
    if not leaf.fits(value):
        yield f"{where} is {value!r:.60}, not {leaf.words}"
    elif isinstance(shape, list):
        for index, entry in enumerate(value):
            yield from _problems(entry, shape[0], f"{where}[{index}]")
    elif isinstance(shape, dict):
        yield from (f"{where} lacks {key}; it has {', '.join(value) or 'nothing'}" for key in shape if key not in value)
        for key, part in shape.items():
            yield from _problems(value.get(key), part, key if shape is _RESULTS else f"{where}.{key}")


@dataclass(frozen=True)
class _Bar:
    """A share of episodes with its 95 % Wilson interval; ``series`` counts the policies, 0 is the evaluated one."""

    policy: str
    series: int
    count: int
    episodes: int
    low: float
    high: float


def _view(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Everything the template names."""
    runs, policy = results["runs"], results["policy"]
    own = [run for run in runs if run["policy"] == policy]
    policies, tasks = _unique([policy, *(run["policy"] for run in runs)]), _unique(run["task"] for run in own)
    suites = _unique(run["suite"] for run in own)
    base = UNDISTURBED if UNDISTURBED in suites else suites[0]
    shown = {task: [run for run in runs if (run["suite"], run["task"]) == (base, task)] for task in tasks}
    swaps = {row["suite"]: list[_Bar]() for row in results.get("swaps", [])}
    for row in results.get("swaps", []):
        swaps[row["suite"]].append(_Bar(row["task"], 0, row["changed"], row["scenes"], *row["wilson_95"]))
    view = {"results": results, "policies": policies, "tasks": tasks, "suites": suites, "base": base}
    return view | {
        "instruction": results.get("instruction", "original"),
        "mask_cameras": results.get("mask_cameras", []),
        "success": {task: [_success(run, policies) for run in group] for task, group in shown.items()},
        "wrong": {task: [_wrong(run, policies) for run in group] for task, group in shown.items()},
        "swaps": swaps,
        "means": {(run["policy"], run["suite"]): _mean_rate(runs, run["policy"], run["suite"]) for run in runs},
        "cells": {(run["suite"], run["task"]): run for run in own},
        "latency": _latency([ms for run in own for ms in run["chunk_total_ms"]]),
        "cards": _cards(runs, policy, folder),
        "outcomes": OUTCOMES,
    }


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _success(run: Run, policies: Sequence[str]) -> _Bar:
    low, high = run["wilson_95"]
    return _Bar(run["policy"], policies.index(run["policy"]), run["successes"], run["episodes"], low, high)


def _wrong(run: Run, policies: Sequence[str]) -> _Bar:
    count, episodes = sum(episode["wrong_object"] for episode in run["episode_results"]), run["episodes"]
    return _Bar(run["policy"], policies.index(run["policy"]), count, episodes, *wilson_interval(count, episodes))


def _mean_rate(runs: Sequence[Run], policy: str, suite: str) -> float:
    return float(np.mean([run["success_rate"] for run in runs if (run["policy"], run["suite"]) == (policy, suite)]))


def _latency(times_ms: Sequence[float]) -> dict[str, Any] | None:
    """Histogram of inference times [ms], places in it as shares of its width; None where nothing was inferred."""
    if not times_ms:
        return None
    median, p95 = np.percentile(times_ms, [50, 95]).tolist()
    low, high = min(times_ms), min(max(times_ms), TAIL * p95)
    tick = _round_up((high - low) / 6)
    first, last = math.floor(low / tick), math.floor(high / tick) + 1
    start, width = first * tick, (last - first) * tick
    counts, edges = np.histogram(times_ms, (last - first) * BINS_PER_TICK, (start, start + width))
    shares, spans = (counts / counts.max()).tolist(), pairwise(edges.tolist())
    return {
        **{"count": len(times_ms), "slowest": max(times_ms), "beyond": len(times_ms) - int(counts.sum())},
        "bins": [(n, share, *span) for n, share, span in zip(counts.tolist(), shares, spans, strict=True)],
        "ticks": [(f"{k * tick:g}", (k - first) / (last - first)) for k in range(first, last + 1)],
        "marks": {"median": (median, (median - start) / width), "p95": (p95, (p95 - start) / width)},
    }


def _round_up(value: float) -> float:
    """The next of 0.1, 0.2, 0.5, 1, 2, 5, 10, ..."""
    scale = 10.0 ** math.floor(math.log10(max(value, 0.1)))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= value)


def _cards(runs: Sequence[Run], policy: str, folder: Path) -> list[dict[str, Any]]:
    """The filmed episodes, failures first; one that took a wrong object and still succeeded is a success."""
    cards = []
    for run in runs:
        about = {key: run[key] for key in ("policy", "suite", "task")}
        for episode in run["episode_results"]:
            if episode["video"]:
                outcome = OUTCOMES[2 if episode["is_success"] else 1 if episode["wrong_object"] else 0]
                cards.append({**episode, **about, "outcome": outcome, **_video(folder, episode["video"])})
    return sorted(cards, key=lambda card: (OUTCOMES.index(card["outcome"]), card["policy"] != policy))


def _video(folder: Path, name: str) -> dict[str, Any]:
    """A video as data URI, with its size and, as poster, its last frame: how the episode ended."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{file}: the results name this video, but it does not lie in {folder}, beside them.")
    try:
        data = file.read_bytes()
        with av.open(str(file)) as container:
            (last,) = deque(container.decode(video=0), maxlen=1)
    except (OSError, ValueError, IndexError, av.FFmpegError) as error:
        raise ConfigError(f"{file}: the results name this video, but it cannot be read ({error}).") from error
    _, poster = cv2.imencode(".jpg", last.to_ndarray(format="bgr24"), [cv2.IMWRITE_JPEG_QUALITY, 80])
    src, still = (b64encode(content).decode() for content in (data, poster.tobytes()))
    return {"width": last.width, "height": last.height, "src": src, "poster": still}
