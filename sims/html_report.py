"""The report of an evaluation: one self-contained HTML file made from its results and the videos beside it.

The template draws its charts as plain SVG, so that they take the page's fonts, its width and its dark mode.
"""

import json
import math
from base64 import b64encode
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pi0_control.errors import ConfigError
from pi0_control.files import write_text
from sims.episode import ORIGINAL
from sims.evaluate import wilson_interval
from sims.variation import NONE

TEMPLATE = Path(__file__).with_name("report.html.j2")
EMBEDDED = 24
"""Most films in the page, half a megabyte each; the others stay beside it."""
OUTCOMES = ("failure", "wrong object", "success")  # in the order of the gallery
PLAY_METRICS = {
    "success_rate": "Success [%]",
    "worst_seam_rad": "Worst seam [rad]",
    "jerk_rad_s3": "Jerk of the commands [rad/s³]",
    "hold_s": "Held still [s an episode]",
}
BINS_PER_TICK, TAIL = 8, 1.6  # of the latency histogram, which ends at TAIL times p95

Run = dict[str, Any]  # one entry of "runs" in results.json


def write_report(path: Path, results: Mapping[str, Any]) -> None:
    """Write the page; it appears whole or not at all, and the same results give the same bytes.

    Args:
        path: the HTML file, beside ``results.json``.
        results: what :func:`sims.evaluate.write_results` wrote there.

    Raises:
        ConfigError: a video that the results name is missing or damaged.
    """
    page = _view(results, path.parent)
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(percent=_percent, json=partial(json.dumps, indent=2, ensure_ascii=False))
    write_text(path, jinja.get_template(TEMPLATE.name).render(page))


def _percent(share: float) -> str:
    """``98`` or ``97.5``: as exact as one decimal allows."""
    return f"{100 * share:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class _Bar:
    """A share of episodes with its 95 % Wilson interval; ``series`` counts the policies, 0 is the evaluated one."""

    policy: str
    series: int
    count: int
    episodes: int
    low: float
    high: float


def _view(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Everything the template names."""
    played, policy = results["runs"], results["policy"]
    runs = [run for run in played if _play(run) == _play(played[0])]
    own = [run for run in runs if run["policy"] == policy]
    policies, tasks = _unique([policy, *(run["policy"] for run in runs)]), _unique(run["task"] for run in own)
    suites = _unique(run["suite"] for run in own)
    base = NONE if NONE in suites else suites[0]
    shown = {task: [run for run in runs if (run["suite"], run["task"]) == (base, task)] for task in tasks}
    swaps = {row["suite"]: list[_Bar]() for row in results["swaps"]}
    for row in results["swaps"]:
        swaps[row["suite"]].append(_Bar(row["task"], 0, row["obeyed"], row["scenes"], *row["wilson_95"]))
    cards, left_out = _cards(played, policy, folder)
    view = {"results": results, "policies": policies, "tasks": tasks, "suites": suites, "base": base}
    return view | {
        "changed_words": "" if results["instruction"] == ORIGINAL else results["instruction"],
        "success": {task: [_success(run, policies) for run in group] for task, group in shown.items()},
        "wrong": {task: [_wrong(run, policies) for run in group] for task, group in shown.items()},
        "swaps": swaps,
        "plays": dict(_play_charts([run for run in played if run["suite"] == base])),
        "strategies": _unique(run["strategy"] for run in played),
        "means": {(run["policy"], run["suite"]): _mean_rate(runs, run["policy"], run["suite"]) for run in runs},
        "cells": {(run["suite"], run["task"]): run for run in own},
        "latency": _latency([ms for run in played if run["policy"] == policy for ms in run["chunk_total_ms"]]),
        "cards": cards,
        "left_out": left_out,
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


def _play(run: Run) -> tuple[str, int]:
    """How its chunks were played."""
    return run["strategy"], run["latency_steps"]


def _play_charts(runs: Sequence[Run]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each task with its charts; none where chunks were played in one way only."""
    if len({_play(run) for run in runs}) > 1:
        for task in _unique(run["task"] for run in runs):
            own = [run for run in runs if run["task"] == task]
            yield task, [_chart(own, key, title) for key, title in PLAY_METRICS.items()]


def _latencies(plays: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """The latencies of each strategy, rising."""
    by_strategy = {strategy: list[int]() for strategy, _ in plays}
    for strategy, steps in sorted(plays):
        by_strategy[strategy].append(steps)
    return by_strategy


def _chart(runs: Sequence[Run], key: str, title: str) -> dict[str, Any]:
    """A metric over the latency, a line per strategy; places are shares of the chart's width and height."""
    scale = 100 if key == "success_rate" else 1
    values = {_play(run): {**run, **run["smoothness"]}[key] for run in runs}
    known = {play: scale * value for play, value in values.items() if value is not None}
    top = _round_up(max(known.values(), default=0), least=1e-3)
    last = max((steps for _, steps in values), default=0) or 1
    lines = {
        strategy: [(steps, steps / last, known[strategy, steps], known[strategy, steps] / top) for steps in latencies]
        for strategy, latencies in _latencies(known).items()
    }
    return {
        **{"title": title, "lines": lines, "levels": [(f"{level * top:g}", level) for level in (0, 0.5, 1)]},
        "ticks": [(steps, steps / last) for steps in sorted({steps for _, steps in values})],
    }


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


def _round_up(value: float, least: float = 0.1) -> float:
    """The next of 0.1, 0.2, 0.5, 1, 2, 5, 10, ..., from ``least`` on, a power of ten."""
    scale = 10.0 ** math.floor(math.log10(max(value, least)))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= value)


def _cards(runs: Sequence[Run], policy: str, folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The filmed episodes, failures first, and how many more there are than the page holds.

    One that took a wrong object and still succeeded is a success.
    """
    cards = []
    for run in runs:
        about = {key: run[key] for key in ("policy", "suite", "task", "strategy", "latency_steps")}
        for episode in run["episode_results"]:
            if episode["video"]:
                outcome = OUTCOMES[2 if episode["is_success"] else 1 if episode["wrong_object"] else 0]
                cards.append({**episode, **about, "outcome": outcome})
    cards.sort(key=lambda card: (OUTCOMES.index(card["outcome"]), card["policy"] != policy))
    return [{**card, **_video(folder / card["video"])} for card in cards[:EMBEDDED]], max(0, len(cards) - EMBEDDED)


def _video(file: Path) -> dict[str, Any]:
    """A video as data URI, with its size and, as poster, its last frame: how the episode ended."""
    try:
        data = file.read_bytes()
        with av.open(str(file)) as container:
            (last,) = deque(container.decode(video=0), maxlen=1)
    except (OSError, ValueError, IndexError, av.FFmpegError) as error:
        raise ConfigError(f"{file}: the results name this video, but it cannot be read ({error}).") from error
    _, poster = cv2.imencode(".jpg", last.to_ndarray(format="bgr24"), [cv2.IMWRITE_JPEG_QUALITY, 80])
    src, still = (b64encode(content).decode() for content in (data, poster.tobytes()))
    return {"width": last.width, "height": last.height, "src": src, "poster": still}
