"""``pi0 bench``."""

import json
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from pi0_control.errors import ConfigError


def bench(
    variant: Literal["pi0", "pi05", "mini"] = "mini",
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float8"] | None = None,
    views: int = 3,
    prompt_tokens: int | None = None,
    steps: int = 10,
    horizon: int | None = None,
    calls: int = 50,
    threads: int | None = None,
    peer: Literal["openpi", "lerobot"] | None = None,
    plain: bool = False,
    out: Path = Path("outputs/bench"),
) -> None:
    """Measure how long a chunk takes here, by stage and against the machine's limits; random weights.

    Args:
        variant: pi0 or pi05 at the public size, or mini.
        device: such as cpu or cuda.
        dtype: float32 for mini and bfloat16 for the others if not given; float8 is bfloat16 but for the prefill.
        views: cameras that are there; the others are masked.
        prompt_tokens: valid tokens of the prompt; half of the model's length if not given.
        steps: denoising steps.
        horizon: actions per chunk; the variant's if not given.
        calls: how many to time, of each contender.
        threads: of the processor; torch's choice if not given.
        peer: another implementation, installed in this environment, to run in turns with ours on the same weights.
        plain: also run the plain sampler that the fast one is tested against.
        out: folder for bench.json and bench.svg.
    """
    from pi0_control.bench.benchmark import benchmark
    from pi0_control.bench.chart import chart
    from pi0_control.bench.workload import Workload
    from pi0_control.policy.policy import resolve_device

    if calls < 1:
        raise ConfigError(f"--calls is {calls}; expected 1 or more.")
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads is {threads}; expected 1 or more.")
    resolve_device(device)
    dtype = dtype or ("float32" if variant == "mini" else "bfloat16")
    workload = Workload(variant, views, prompt_tokens, steps, horizon, dtype, device)
    result = benchmark(workload, calls, peer, plain, threads)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "bench.svg").write_text(chart(result), encoding="utf-8")
    _show(result)
    print(f"Written: {out / 'bench.json'}, {out / 'bench.svg'}")


def _show(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    machine = result["machine"]
    console.print(
        f"{machine['name']}: {machine['flops'] / 1e9:.0f} GFLOP/s in a product, "
        f"{machine['bytes_per_s'] / 1e9:.1f} GB/s in a copy, {machine['threads']} threads; "
        f"{result['memory_gb']:.2f} GB held"
    )
    table = Table("", "median", "p95", "p99", "least", "processor", title="One chunk [ms]", title_justify="left")
    for name, run in result["runs"].items():
        total = run["total_ms"]
        figures = [total["median"], total["p95"], total["p99"], total["min"], run["cpu_ms"]["median"]]
        table.add_row(name, *(f"{figure:.1f}" for figure in figures))
    split = result["stages_of"]
    columns = ("stage", "median [ms]", "least", "floor", "GFLOP/s", "GB/s")
    stages = Table(*columns, title=split.capitalize(), title_justify="left")
    for name, achieved in result["achieved"].items():
        taken = result["runs"][split]["stages_ms"][name]
        figures = [taken["median"], taken["min"], achieved["floor_ms"]]
        rates = [achieved["flops"] / 1e9, achieved["bytes_per_s"] / 1e9]
        stages.add_row(name, *(f"{figure:.1f}" for figure in (*figures, *rates)))
    console.print(table, stages)
    if "denoise_in_graph_ms" in result:
        console.print(f"Kernels of our own: {', '.join(result['fused']) or 'not used'}")
        console.print(f"All denoising steps inside the graph: {result['denoise_in_graph_ms']:.2f} ms")
    for name, against in result["against_ours"].items():
        rounds = against["ratio_of_rounds"]
        by_round = f"by round {rounds['median']:.2f}, half of them {rounds['p25']:.2f} to {rounds['p75']:.2f}"
        console.print(
            f"{name}: {against['ratio_total_ms']:.2f} times our time ({by_round}), {against['ratio_cpu_ms']:.2f} times "
            f"the processor time; actions of std {against['actions_std']:.2g} differ by "
            f"{against['difference_rms']:.2g} rms, {against['difference_max']:.2g} at most"
        )
