"""``pi0 bench``: what it computes, how it counts, and what it writes; times are never asserted."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pi0_control.bench import peers
from pi0_control.bench.benchmark import BFLOAT16, ONE_STEP, SPLIT, UNFUSED, _compare, _processor_name, benchmark
from pi0_control.bench.chart import chart
from pi0_control.bench.measure import Samples, interleave
from pi0_control.bench.workload import Workload
from pi0_control.cli.bench import bench
from pi0_control.errors import ConfigError
from pi0_control.model.config import Pi0Config
from pi0_control.model.fast import FastSampler
from pi0_control.model.graph import Program
from pi0_control.model.pi0 import Pi0


def test_the_work_is_what_is_computed() -> None:
    workload = Workload("mini", views=2, prompt_tokens=5, steps=3)
    (inputs, noise), sampler = workload.inputs(), FastSampler(workload.model(), 3)
    sampler(inputs, noise)  # makes the tables
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the only one that is counted
        sampler(inputs, noise)
    convolutions = ((3, 32, 5, 32), (32, 64, 3, 16), (64, 96, 3, 8), (96, 192, 2, 4))  # not in a patch stem
    stem = sum(before * after * kernel**2 * places**2 for before, after, kernel, places in convolutions) * 2 * 2
    counted = sum(flop for flop, _ in workload.work.values()) + stem
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_work_of_the_public_models_is_the_papers() -> None:
    work = Workload("pi05", 3, 60, dtype="bfloat16").work
    assert work["vision"][0] == pytest.approx(661e9, rel=0.05)
    assert work["denoise"][1] == pytest.approx(10 * 0.64e9, rel=0.05)
    assert Workload("pi0", 3, 48, dtype="bfloat16").work["prefill"][0] == pytest.approx(3149e9, rel=0.02)
    assert Workload("pi05", 3, 200, dtype="bfloat16").work["prefill"][0] == pytest.approx(3756e9, rel=0.02)


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def call(name: str):
        return lambda stages: order.append(name) or torch.zeros(1)

    samples = interleave({"a": call("a"), "b": call("b")}, 3, torch.device("cpu"))
    assert "".join(order) == "ab" + "abbaab"
    assert [len(each.total_ms) for each in samples.values()] == [3, 3]
    assert set(Samples([1.0, 2.0], [1.0, 2.0]).summary()["total_ms"]) == {"min", "median", "p95", "p99"}


def test_contenders_are_compared_round_by_round() -> None:
    actions = torch.zeros(1, 2, 3)
    ours = Samples([1.0, 2.0, 4.0], [1.0] * 3, actions=actions)
    other = Samples([3.0, 4.0, 20.0], [2.0] * 3, actions=actions)
    compared = _compare({"ours": ours, "other": other})["other"]
    assert compared["ratio_of_rounds"] == {"p25": 2.5, "median": 3.0, "p75": 4.0}
    assert compared["ratio_total_ms"] == 2.0
    assert compared["ratio_cpu_ms"] == 2.0


def test_a_benchmark_is_json_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench("mini", calls=2, plain=True, steps=2, out=tmp_path)
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["runs"]["ours"]["calls"] == 2
    assert set(result["runs"]["ours"]["stages_ms"]) == set(result["achieved"]) == {"vision", "prefill", "denoise"}
    against = result["against_ours"]["plain"]
    assert against["difference_max"] < 1e-4
    rounds = against["ratio_of_rounds"]
    assert 0 < rounds["p25"] <= rounds["median"] <= rounds["p75"]
    assert ElementTree.parse(tmp_path / "bench.svg").getroot().tag.endswith("svg")
    assert chart(result) == (tmp_path / "bench.svg").read_text()
    assert "plain" in capsys.readouterr().out


def test_the_limits_are_the_best_of_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = [{"flops": 1e9, "bytes_per_s": 4e9}, {"flops": 3e9, "bytes_per_s": 2e9}]
    monkeypatch.setattr("pi0_control.bench.benchmark.roofline", lambda device, dtype: measured.pop(0))
    result = benchmark(Workload("mini", steps=1), 1)
    assert [result["machine"]["flops"], result["machine"]["bytes_per_s"]] == [3e9, 4e9]
    assert not measured


def test_the_processor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pi0_control.bench.benchmark.CPU_INFO", tmp_path / "cpuinfo")
    assert _processor_name()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some Processor @ 3.0 GHz\n")
    assert _processor_name() == "Some Processor @ 3.0 GHz"


@pytest.mark.parametrize("has_graphs", [False, True])
def test_float8_is_timed_beside_bfloat16_and_against_its_own_limit(
    has_graphs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pi0_control.bench.benchmark._has_graphs", lambda device: has_graphs)
    bench("mini", dtype="float8", calls=1, steps=2, out=tmp_path)
    result = json.loads((tmp_path / "bench.json").read_text())
    assert 1e-4 < result["against_ours"][BFLOAT16]["difference_rms"] < 0.1
    assert result["machine"]["prefill_flops"] > 0
    in_bfloat16 = Workload("mini", dtype="bfloat16").work
    assert result["achieved"]["prefill"]["bytes"] == in_bfloat16["prefill"][1] / 2
    assert Workload("mini", dtype="float8").work["vision"] == in_bfloat16["vision"]


def test_where_a_graph_is_one_launch_the_stages_are_those_of_the_same_work_launched_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pi0_control.bench.benchmark._has_graphs", lambda device: True)  # run uncaptured here
    bench("mini", calls=1, steps=2, out=tmp_path)
    result = json.loads((tmp_path / "bench.json").read_text())
    assert set(result["runs"]) == {"ours", ONE_STEP, UNFUSED, SPLIT}
    assert not result["runs"]["ours"]["stages_ms"]
    assert set(result["runs"][SPLIT]["stages_ms"]) == set(result["achieved"])
    assert max(result["against_ours"][name]["difference_max"] for name in (UNFUSED, SPLIT)) < 1e-4
    assert result["fused"] == []
    out = capsys.readouterr().out
    assert "Kernels of our own: not used" in out
    assert "All denoising steps inside the graph" in out


def test_a_gpu_that_makes_no_graph_is_not_timed_as_if_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(program: Program) -> None:
        raise RuntimeError("no graphs here")

    monkeypatch.setattr("pi0_control.bench.benchmark._has_graphs", lambda device: True)
    monkeypatch.setattr(Program, "captured", fail)
    with pytest.raises(ConfigError, match="No CUDA graph could be made on cpu"):
        benchmark(Workload("mini"), 1)


def test_sizes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="views is 4; expected 1 to 3"):
        Workload("pi0", views=4)
    with pytest.raises(ConfigError, match="prompt_tokens is 49; expected 1 to 48"):
        Workload("pi0", prompt_tokens=49)
    with pytest.raises(ConfigError, match="--calls is 0"):
        bench(calls=0)
    with pytest.raises(ConfigError, match="--threads is 0"):
        bench(threads=0)


@pytest.mark.parametrize(
    ("peer", "missing"), [("openpi", "openpi"), ("lerobot", "lerobot"), ("lerobot", "transformers")]
)
def test_a_peer_that_is_not_installed_is_named(peer: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _install("transformers", monkeypatch)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=f"{peer} cannot be imported"):
        benchmark(Workload("mini"), 1, peer=peer)


def test_a_peer_runs_padded_and_on_the_valid_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def build(model: Pi0, num_steps: int):
        return lambda inputs, noise: lengths.append(inputs.tokens.shape[1]) or noise

    monkeypatch.setitem(peers.PEERS, "lerobot", build)
    workload = Workload("mini", prompt_tokens=5, steps=1)
    result = benchmark(workload, 1, peer="lerobot")
    assert set(result["against_ours"]) == {"lerobot", "lerobot, valid tokens only"}
    assert set(lengths) == {workload.config.max_token_len, 5}


class Twin(nn.Module):
    """Has openpi's names and answers with one of our weights."""

    def __init__(self, settings: SimpleNamespace) -> None:
        super().__init__()
        self.settings = settings
        self.action_in_proj = nn.Linear(settings.action_dim, 24)
        self.register_buffer("kept", torch.ones(3))

    def sample_actions(self, device: torch.device, observation: SimpleNamespace, noise: torch.Tensor, num_steps: int):
        assert set(observation.images) == set(peers.CAMERAS)
        return noise * num_steps * self.kept.sum()


class Cousin(nn.Module):
    """Has LeRobot's names and dtypes."""

    def __init__(self, settings: SimpleNamespace) -> None:
        super().__init__()
        self.settings = settings
        self.action_in_proj = nn.Linear(settings.max_action_dim, 24)
        inner: nn.Module = nn.Linear(16, 32)
        for name in ("linear", "multi_modal_projector", "model", "paligemma"):
            inner = nn.ModuleDict({name: inner})
        self.paligemma_with_expert = inner
        self.register_buffer("kept", torch.ones(3))

    def sample_actions(self, images, masks, tokens, token_mask, *state, noise: torch.Tensor, num_steps: int):
        assert [len(images), len(masks), images[0].ndim, masks[0].ndim] == [3, 3, 4, 1]
        return noise * num_steps * self.kept.sum() + len(state)


def _install(name: str, monkeypatch: pytest.MonkeyPatch, **contents: object) -> None:
    """A module with these contents, and those that it lies in."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:length]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(contents)


def _tiny(family: str) -> Pi0:
    sizes = {"prefix_width": 32, "prefix_mlp_dim": 48, "action_width": 24, "action_mlp_dim": 40, "depth": 1}
    config = Pi0Config.preset(family)
    vision = replace(config.vision, image_size=28, width=16, depth=1, num_heads=2, mlp_dim=24)
    return Pi0(replace(config, vision=vision, vocab_size=50, num_heads=2, head_dim=8, **sizes))


def test_a_peer_has_our_tensors_and_its_own_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, built = _tiny("pi0"), []
    _install("transformers", monkeypatch)
    package = {"PI0Pytorch": lambda settings: built.append(Twin(settings)) or built[0]}
    _install("openpi.models_pytorch.pi0_pytorch", monkeypatch, **package)
    sample = peers.openpi(model, 2)
    assert built[0].action_in_proj.weight.data_ptr() == model.action_in_proj.weight.data_ptr()
    assert built[0].settings.dtype == "float32"
    inputs, noise = Workload("mini").inputs()
    assert torch.equal(sample(inputs, noise), 6 * noise)


@pytest.mark.parametrize(("family", "states"), [("pi0", 1), ("pi05", 0)])
def test_lerobot_has_copies_where_it_keeps_float32(family: str, states: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, built = _tiny(family).cast(torch.bfloat16), []
    _install("transformers", monkeypatch)
    package = {
        f"{family.upper()}Config": SimpleNamespace,
        f"{family.upper()}Pytorch": lambda settings: built.append(Cousin(settings)) or built[0],
    }
    _install(f"lerobot.policies.{family}.modeling_{family}", monkeypatch, **package)
    sample = peers.lerobot(model, 2, "max-autotune")
    peer = built[0]
    assert peer.action_in_proj.weight.data_ptr() == model.action_in_proj.weight.data_ptr()
    copy = peer.get_parameter("paligemma_with_expert.paligemma.model.multi_modal_projector.linear.weight")
    assert torch.equal(copy, model.vision.head.weight.float())
    assert (peer.settings.dtype, peer.settings.compile_mode) == ("bfloat16", "max-autotune")
    inputs, noise = Workload("mini").inputs()
    assert torch.equal(sample(inputs, noise), 6 * noise + states)
