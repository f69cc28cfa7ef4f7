"""A benchmark as a picture: one bar per contender, ours split by stage, in SVG."""

from collections.abc import Mapping
from html import escape
from typing import Any

STAGES = {"vision": "#4c78a8", "prefill": "#72b7b2", "prefix": "#9d9ccf", "denoise": "#f58518"}  # prefix: both before
OTHER, FLOOR = "#bab0ac", "#e45756"
WIDTH, LEFT, ROW, TOP = 900, 210, 46, 74


def chart(result: Mapping[str, Any]) -> str:
    """An SVG document of what :func:`benchmark.benchmark` returned."""
    runs, workload = result["runs"], result["workload"]
    longest = max(run["total_ms"]["median"] for run in runs.values())
    scale = (WIDTH - LEFT - 120) / longest
    title = (
        f"{workload['variant']}, {workload['dtype']} on {result['machine']['name']}: {workload['views']} views, "
        f"{workload['prompt_tokens']} prompt tokens, {workload['steps']} steps, {workload['horizon']} actions"
    )
    parts = [_text(12, 24, title, size=15), *_legend()]
    for index, (name, run) in enumerate(runs.items()):
        y = TOP + index * ROW
        parts += [_text(LEFT - 8, y + 19, name, anchor="end"), *_bar(y, run, scale)]
        parts.append(_text(LEFT + run["total_ms"]["median"] * scale + 6, y + 19, f"{run['total_ms']['median']:.1f} ms"))
    height = TOP + len(runs) * ROW + 12
    floor = LEFT + sum(stage["floor_ms"] for stage in result["achieved"].values()) * scale
    parts.append(f'<path d="M{floor:.1f} {TOP - 6}V{height - 10}" stroke="{FLOOR}" stroke-width="2"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>' + "".join(parts) + "</svg>\n"
    )


def _bar(y: float, run: Mapping[str, Any], scale: float) -> list[str]:
    """Stages by their medians; what they leave of the total, or all of it without stages, in grey."""
    stages = {name: run["stages_ms"][name]["median"] for name in STAGES if name in run["stages_ms"]}
    rest = max(run["total_ms"]["median"] - sum(stages.values()), 0.0)
    x, parts = float(LEFT), []
    for width, colour in [*((stages[name] * scale, STAGES[name]) for name in stages), (rest * scale, OTHER)]:
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="28" fill="{colour}"/>')
        x += width
    return parts


def _legend() -> list[str]:
    parts, x = [], float(LEFT)
    for name, colour in [*STAGES.items(), ("not split", OTHER), ("floor of our work on this machine", FLOOR)]:
        parts += [f'<rect x="{x}" y="40" width="12" height="12" fill="{colour}"/>', _text(x + 17, 51, name, size=12)]
        x += 40 + 7.5 * len(name)
    return parts


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'
