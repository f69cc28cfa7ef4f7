"""What the fast path would launch on a device, counted at full size on tensors without memory; no times, no GPU.

A tensor on the meta device has no values, so a host that waited for one would raise here, as would a tensor that was
made on another device on the way.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pi0_control.bench.workload import Workload
from pi0_control.model.config import Pi0Config
from pi0_control.model.fast import FastSampler
from pi0_control.model.pi0 import Pi0
from pi0_control.model.sampler import Flow, sample_actions

VIEWS = {"_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "t"}
VIEWS |= {"split_with_sizes", "transpose", "unbind", "unsqueeze", "squeeze", "view"}
STEPS = 4


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and the RMS norm are one kernel each on a GPU; here they would be counted in their parts."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, attn_mask=None: torch.empty_like(q))
    monkeypatch.setattr(F, "rms_norm", lambda x, shape, weight=None, eps=None: torch.empty_like(x))


class Launches(TorchDispatchMode):
    """Names of the operators that compute something, and the bytes of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.names.append(name)
            self.made.append(out.nbytes if isinstance(out, torch.Tensor) and not name.endswith("_") else 0)
        return out


def on_meta(variant: Any, **changes: Any) -> tuple[Pi0, Any, torch.Tensor]:
    workload = Workload(variant, prompt_tokens=40, dtype="bfloat16")
    model = Pi0.empty(replace(Pi0Config.preset(variant), **changes), torch.bfloat16, "meta").requires_grad_(False)
    inputs, noise = workload.inputs()
    return model, inputs.trimmed().to("meta"), noise.to("meta")


@contextmanager
def steps_of(sampler: FastSampler) -> Iterator[list[Launches]]:
    """One count per denoising step, Euler's part left out."""
    counts: list[Launches] = []
    velocity = sampler._velocity

    def counted(*args: Any) -> torch.Tensor:
        with Launches() as launches:
            out = velocity(*args)
        counts.append(launches)
        return out

    sampler._velocity = counted  # type: ignore[method-assign]
    yield counts


@pytest.mark.parametrize(("variant", "per_layer", "besides"), [("pi0", 22, 12), ("pi05", 24, 12)])
def test_operators_per_denoising_step(variant: str, per_layer: int, besides: int) -> None:
    model, inputs, noise = on_meta(variant)
    sampler = FastSampler(model, STEPS)
    encoded = sampler.encode(inputs, is_full=True)
    with steps_of(sampler) as counts:
        sampler.denoise(Flow(noise, STEPS), encoded, inputs.state)
    first, *later = counts
    assert len({tuple(each.names) for each in later}) == 1  # every step launches the same
    assert len(later[0].names) <= per_layer * model.config.depth + besides, Counter(later[0].names)
    assert len(first.names) <= len(later[0].names) + 3  # the state's token
    products = sum(name in ("mm", "addmm", "bmm", "linear") for name in later[0].names)
    assert products <= 4 * model.config.depth + 3
    for unneeded in ("sin", "cos", "cat", "arange", "cumsum", "where", "masked_fill", "repeat_interleave"):
        assert unneeded not in later[0].names


@pytest.mark.parametrize("variant", ["pi0", "pi05"])
def test_no_step_makes_anything_of_the_prefixs_size(variant: str) -> None:
    model, inputs, noise = on_meta(variant)
    sampler = FastSampler(model, STEPS)
    encoded = sampler.encode(inputs, is_full=True)
    where = encoded.buffers
    with steps_of(sampler) as counts:
        sampler.denoise(Flow(noise, STEPS), encoded, inputs.state)
    assert encoded.buffers is where
    of_prefix = encoded.length * model.config.head_dim * 2  # one layer's keys, bytes
    hidden = model.config.suffix_len * 2 * model.config.action_mlp_dim * 2  # the widest the suffix gets
    assert hidden < 4 * of_prefix
    for each in counts:
        assert max(each.made) <= hidden
    assert len({sum(each.made) for each in counts[1:]}) == 1


def test_the_plain_sampler_launches_more() -> None:
    model, inputs, noise = on_meta("pi05")
    sampler = FastSampler(model, STEPS)
    sampler.encode(inputs, is_full=True)  # makes the tables
    with Launches() as fast:
        sampler.denoise(Flow(noise, STEPS), sampler.encode(inputs, is_full=True), inputs.state)
    with Launches() as plain:
        sample_actions(model, inputs, noise, STEPS)
    assert len(fast.names) < 0.7 * len(plain.names)


def test_parts_of_the_ratio() -> None:
    """What is left out against running everything padded, as counts of products: text, cameras, the last layer."""
    padded = Workload("pi05", 3, 200, dtype="bfloat16").work
    trimmed = Workload("pi05", 3, 60, dtype="bfloat16").work
    two = Workload("pi05", 2, 60, dtype="bfloat16").work
    assert trimmed["prefill"][0] < 0.86 * padded["prefill"][0]
    assert two["vision"][0] == pytest.approx(2 / 3 * trimmed["vision"][0])
    assert two["prefill"][0] < 0.70 * trimmed["prefill"][0]
