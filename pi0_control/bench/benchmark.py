"""One benchmark: ours, a peer if asked for, and the machine, as one JSON document."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi0_control.bench import peers
from pi0_control.bench.measure import (
    Call,
    Samples,
    VisionClock,
    float8_flops,
    interleave,
    memory_gb,
    quartiles,
    roofline,
)
from pi0_control.bench.workload import DTYPES, Workload
from pi0_control.errors import ConfigError
from pi0_control.model.fast import FastSampler
from pi0_control.model.graph import GraphSampler
from pi0_control.model.pi0 import ModelInputs, Pi0, in_model_range
from pi0_control.model.sampler import sample_actions

SPLIT = "ours, launched one by one"  # where a graph leaves no stages to time
ONE_STEP = "ours, one step"  # what it lacks of ours are the other steps
UNFUSED = "ours, PyTorch's kernels only"
BFLOAT16 = "ours, bfloat16"  # what float8 is compared with
CPU_INFO = Path("/proc/cpuinfo")


@torch.no_grad()
def benchmark(
    workload: Workload, calls: int, peer: str | None = None, plain: bool = False, threads: int | None = None
) -> dict[str, Any]:
    """Measure a workload.

    Args:
        workload: what to compute.
        calls: synchronised calls of each contender after one to warm up; with several they take turns, A B B A.
        peer: ``openpi`` or ``lerobot``, on views of the same weights, with the same noise and inputs: once padded, as
            it always runs, and once given the valid tokens only.
        plain: also the plain sampler, :func:`sample_actions`.
        threads: of the processor, for the whole process; as it is if None.

    Raises:
        ConfigError: the peer is not installed or has no such model, or a GPU makes no graph.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model, device = workload.model(), torch.device(workload.device)
    inputs, noise = workload.inputs()
    before = _limits(workload, device)
    graphs = _graphs(model, workload, inputs, noise) if _has_graphs(device) else {}
    contenders = {name: _graph(sampler, inputs, noise) for name, sampler in graphs.items()}
    split = SPLIT if graphs else "ours"
    with VisionClock(model) as clock:
        contenders[split] = _ours(model, workload, inputs, noise, clock)
        if workload.is_float8 and not graphs:
            in_bfloat16 = FastSampler(model, workload.steps, packs=True)
            contenders[BFLOAT16] = lambda stages: in_bfloat16(inputs, noise)
        if plain:
            there = inputs.to(device)
            contenders["plain"] = lambda stages: sample_actions(model, there, noise, workload.steps, timing=stages)
        if peer is not None:
            contenders |= _peer(peer, model, workload, inputs, noise)
        samples = interleave(contenders, calls, device)
    memory, after = memory_gb(device), _limits(workload, device)
    limits = {name: max(before[name], after[name]) for name in before}  # a busy machine was slow at one of the times
    return {
        "workload": asdict(workload) | {"prompt_tokens": workload.valid_tokens, "horizon": model.config.action_horizon},
        "machine": _machine(device) | limits,
        "memory_gb": memory,
        "runs": {name: each.summary() for name, each in samples.items()},
        "fused": [name for name, sampler in graphs.items() if sampler.fuses],
        "stages_of": split,
        "achieved": _achieved(workload, samples[split], limits),
        "against_ours": _compare(samples),
        **_steps_in_graph(workload, samples),
    }


def _limits(workload: Workload, device: torch.device) -> dict[str, float]:
    """What the machine reaches now."""
    limits = roofline(device, DTYPES[workload.dtype])
    return limits | {"prefill_flops": float8_flops(device)} if workload.is_float8 else limits


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def _graphs(model: Pi0, workload: Workload, inputs: ModelInputs, noise: Tensor) -> dict[str, GraphSampler]:
    """Captured before any clock hangs on the model."""
    samplers = {}
    wanted = {"ours": (workload.steps, True), ONE_STEP: (1, True), UNFUSED: (workload.steps, False)}
    if workload.is_float8:
        wanted[BFLOAT16] = (workload.steps, True)
    for name, (steps, fuses) in wanted.items():
        float8 = workload.is_float8 and name != BFLOAT16
        samplers[name], stages = GraphSampler(model, steps, fuses=fuses, float8=float8), dict[str, float]()
        samplers[name](inputs, noise, timing=stages)
        if "graph_ms" not in stages:
            raise ConfigError(f"No CUDA graph could be made on {workload.device}; the log says why.")
    return samplers


def _graph(sampler: GraphSampler, inputs: ModelInputs, noise: Tensor) -> Call:
    return lambda stages: sampler(inputs, noise)


def _ours(model: Pi0, workload: Workload, inputs: ModelInputs, noise: Tensor, clock: VisionClock) -> Call:
    sampler = FastSampler(model, workload.steps, packs=True, float8=workload.is_float8)

    def call(stages: dict[str, float]) -> Tensor:
        clock.take()  # what the encoder did for others
        actions = sampler(inputs, noise, timing=stages)
        stages["vision_ms"] = clock.take()
        stages["prefill_ms"] = stages.pop("prefix_ms") - stages["vision_ms"]
        return actions

    return call


def _peer(name: str, model: Pi0, workload: Workload, inputs: ModelInputs, noise: Tensor) -> dict[str, Call]:
    """Eager, padded and not; on a GPU compiled, too, in the mode of its own configs."""
    build = peers.PEERS[name]
    sample = build(model, workload.steps)
    padded, there = replace(inputs, images=in_model_range(inputs.images)).to(model.device), noise.to(model.device)
    length = workload.valid_tokens
    valid = replace(padded, tokens=padded.tokens[:, :length], token_mask=padded.token_mask[:, :length])
    calls: dict[str, Call] = {
        name: lambda stages: sample(padded, there),
        f"{name}, valid tokens only": lambda stages: sample(valid, there),
    }
    if model.device.type == "cuda":
        compiled = build(model, workload.steps, "max-autotune")
        calls[f"{name}, max-autotune"] = lambda stages: compiled(padded, there)
    return calls


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "device": str(device),
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
    }


def _processor_name() -> str:
    """What it is sold as, where the system says so."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _achieved(workload: Workload, ours: Samples, limits: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By stage, in its fastest call: work, rates, and the share of the time that the machine's limits explain."""
    achieved = {}
    for stage, (flop, read) in workload.work.items():
        seconds = min(ours.stages_ms[stage]) / 1000
        floor = max(flop / limits.get(f"{stage}_flops", limits["flops"]), read / limits["bytes_per_s"])
        achieved[stage] = {
            "flop": flop,
            "bytes": read,
            "flops": flop / seconds,
            "bytes_per_s": read / seconds,
            "floor_ms": 1000 * floor,
            "of_roofline": floor / seconds,
        }
    return achieved


def _steps_in_graph(workload: Workload, samples: Mapping[str, Samples]) -> dict[str, float]:
    """All denoising steps inside the graph [ms]: what more steps add to one, and one more of that."""
    if ONE_STEP not in samples or workload.steps == 1:
        return {}
    totals = [_median(samples[name].summary(), "total_ms") for name in ("ours", ONE_STEP)]
    return {"denoise_in_graph_ms": (totals[0] - totals[1]) * workload.steps / (workload.steps - 1)}


def _compare(samples: Mapping[str, Samples]) -> dict[str, dict[str, Any]]:
    """Each other contender: its times over ours, medians and round by round, and what its actions differ from ours."""
    ours = samples["ours"]
    compared: dict[str, dict[str, Any]] = {}
    for name, other in samples.items():
        if name in ("ours", ONE_STEP) or other.actions is None or ours.actions is None:
            continue
        difference = other.actions - ours.actions
        mine, theirs = ours.summary(), other.summary()
        compared[name] = {
            **{f"ratio_{key}": _median(theirs, key) / _median(mine, key) for key in ("total_ms", "cpu_ms")},
            "ratio_of_rounds": quartiles([b / a for a, b in zip(ours.total_ms, other.total_ms, strict=True)]),
            "difference_max": float(difference.abs().max()),
            "difference_rms": float(difference.square().mean().sqrt()),
            "actions_std": float(ours.actions.std()),
        }
    return compared


def _median(summary: Any, key: str) -> float:
    return float(summary[key]["median"])
