"""Float8 loses what eight bits lose, says where it cannot be had, and leaves everything but the prefix as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_golden import jax_model, relative_rms
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import nn

from pi0_control.errors import ConfigError
from pi0_control.model.config import Pi0Config
from pi0_control.model.fast import FastSampler
from pi0_control.model.float8 import Float8Matrix, check_float8, scaled_rows
from pi0_control.model.graph import GraphSampler
from pi0_control.model.lora import LoraLinear
from pi0_control.policy.policy import Pi0Policy
from pi0_control.types import Observation

HALF_A_STEP = 2.0**-4  # of three bits behind the leading one, of the number itself


def test_a_row_keeps_its_numbers_to_three_bits_and_its_largest_exactly() -> None:
    x = torch.randn(5, 64) * 10.0 ** torch.arange(-4.0, 1.0)[:, None]
    x[3] = 0
    values, scale = scaled_rows(x)
    again = values.float() * scale
    smallest = 2.0**-10 * scale  # of float8, below which steps have one size
    assert ((again - x).abs() <= (HALF_A_STEP * x.abs()).maximum(smallest)).all()
    torch.testing.assert_close(again.abs().amax(1), x.abs().amax(1))
    assert scaled_rows(torch.full((1, 16), torch.nan)).values.float().isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_product_in_float8(dtype: torch.dtype) -> None:
    matrix, x = nn.Linear(64, 48, bias=False), torch.randn(2, 7, 64).to(dtype)
    product = Float8Matrix(matrix)(x)
    rows, weight = scaled_rows(x.flatten(0, 1)), scaled_rows(matrix.weight.detach())
    exact = (rows.values.double() * rows.scale) @ (weight.values.double() * weight.scale).mT
    assert product.dtype == dtype
    assert product.shape == (2, 7, 48)
    assert relative_rms(product.flatten(0, 1), exact.float()) < 3e-3  # the result is rounded to bfloat16
    assert relative_rms(product, matrix(x.float()).detach()) < 0.06


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_actions_in_float8_are_a_few_percent_off(name: str) -> None:
    """Over the 31 noises of test_fast: 3.5 % (π0) and 3.0 % (π0.5), where bfloat16 is 1.2 and 0.8 % off."""
    model, inputs, golden = jax_model(name)
    noise, exact = torch.tensor(golden["noise"]), golden["sample_10"]
    sampler = FastSampler(model.cast(torch.bfloat16), 10, float8=True)
    error = relative_rms(sampler(inputs, noise), exact)
    assert relative_rms(FastSampler(model, 10)(inputs, noise), exact) < error < 0.05


@pytest.mark.parametrize("config", [TINY, TINY_PI05])
def test_programs_of_graphs_compute_in_float8_too(config: Pi0Config) -> None:
    model, inputs, noise = make_model(config).cast(torch.bfloat16), make_inputs(config), make_flow(config)[1]
    expected = FastSampler(model, 2, float8=True)(inputs, noise)
    sampler = GraphSampler(model, 2, float8=True)
    assert relative_rms(sampler(inputs, noise), expected) < 0.02
    with torch.no_grad():
        model.prefix_layers[0].down.weight.mul_(-2)
    changed = FastSampler(model, 2, float8=True)(inputs, noise)
    assert relative_rms(changed, expected) > 0.02
    assert relative_rms(sampler(inputs, noise), changed) < 0.02


def test_a_policy_in_float8_acts_nearly_as_in_float32() -> None:
    actions = {}
    for dtype in ("float32", "float8"):
        policy = Pi0Policy.from_pretrained("mini", dtype=dtype)
        images = {name: np.full((64, 64, 3), 90, np.uint8) for name in policy.robot.cameras}
        actions[dtype] = torch.tensor(
            policy.infer(Observation(images, policy.robot.home, "lift the red block")).actions
        )
    assert 0 < relative_rms(actions["float8"], actions["float32"]) < 0.05


def test_what_cannot_be_computed_in_float8() -> None:
    check_float8(make_model())
    odd = make_model(replace(TINY, prefix_mlp_dim=40))
    with pytest.raises(ConfigError, match=r"multiples of 16; got \[40\]"):
        FastSampler(odd, float8=True)
    adapted = make_model()
    adapted.prefix_layers[0].out = LoraLinear(adapted.prefix_layers[0].out, 2, 2.0)
    with pytest.raises(ConfigError, match="adapters"):
        GraphSampler(adapted, float8=True)


def test_a_device_without_float8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled_mm(*args: object, **options: object) -> None:
        raise NotImplementedError("not on this device")

    monkeypatch.setattr("torch.nn.functional.scaled_mm", scaled_mm)
    with pytest.raises(ConfigError, match=r"PyTorch 2\S* cannot multiply float8 on cpu: not on this device"):
        Pi0Policy.from_pretrained("mini", dtype="float8")
