"""The figures of openpi's own code (golden/README.md) come out of this model: float32 to 1e-4, bfloat16 to 2 %."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import GOLDEN, golden_directory
from safetensors import safe_open
from torch import Tensor

from pi0_control.model.checkpoints import open_checkpoint
from pi0_control.model.pi0 import ModelInputs, Pi0
from pi0_control.model.sampler import sample_actions

NAMES = ["pi0", "pi05"]
BACKENDS = ["eager", "sdpa", "flex"]


def difference(ours: Tensor, golden: Any) -> float:
    return (ours.double() - torch.as_tensor(golden).double()).abs().max().item()


def relative_rms(ours: Tensor, golden: Any) -> float:
    golden = torch.as_tensor(golden).double()
    return ((ours.double() - golden).square().mean().sqrt() / golden.std()).item()


def load(directory: Path, backend: str, **changes: int) -> Pi0:
    checkpoint = open_checkpoint(directory)
    model = Pi0.empty(replace(checkpoint.config, attn_backend=backend, **changes))
    checkpoint.load(model)
    return model


def jax_model(name: str, backend: str = "eager") -> tuple[Pi0, ModelInputs, dict[str, Any]]:
    model = load(GOLDEN / f"orbax_{name}_tiny", backend, action_horizon=7, max_token_len=12)
    arrays = dict(np.load(GOLDEN / f"{name}_tiny.npz"))
    y, x, c = np.mgrid[0:224, 0:224, 0:3]
    pixels = [[(3 * x + 5 * y + 7 * c + 11 * k + 13 * b + (x * y) // 17) % 256 for k in range(3)] for b in range(2)]
    inputs = ModelInputs(
        images=torch.tensor(np.array(pixels)).permute(0, 1, 4, 2, 3).float() / 255 * 2 - 1,
        image_masks=torch.tensor(arrays["image_masks"]).T,
        tokens=torch.tensor(arrays["tok"]).long(),
        token_mask=torch.tensor(arrays["tok_mask"]),
        state=torch.tensor(arrays["state"]),
    )
    return model, inputs, arrays


def torch_model(name: str, backend: str = "eager") -> tuple[Pi0, ModelInputs, dict[str, Tensor]]:
    with TemporaryDirectory() as directory:
        model = load(golden_directory(Path(directory), name), backend)
    with safe_open(GOLDEN / f"openpi_torch_{name}_tiny.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("weights.")}  # noqa: SIM118
    inputs = ModelInputs(
        tensors["in.images"],
        tensors["in.image_masks"],
        tensors["in.tokens"].long(),
        tensors["in.token_mask"],
        tensors["in.state"],
    )
    return model, inputs, tensors


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_embeddings_of_openpi_jax(name: str) -> None:
    model, inputs, golden = jax_model(name)
    prefix, valid, _ = model.embed_prefix(inputs)
    assert difference(prefix, golden["prefix"]) < 1e-4
    assert np.array_equal(valid.numpy(), golden["prefix_mask"])
    suffix, _, ar, cond = model.embed_suffix(
        inputs.state, torch.tensor(golden["noise"]), torch.tensor(golden["suffix_t"])
    )
    assert difference(suffix, golden["suffix"]) < 1e-4
    assert np.array_equal(ar.bool().numpy(), golden["suffix_ar"])
    if name == "pi05":
        assert cond is not None
        assert difference(cond, golden["cond"]) < 1e-4
    else:
        assert cond is None


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_loss_and_samples_of_openpi_jax(name: str) -> None:
    model, inputs, golden = jax_model(name)
    loss = model.loss(inputs, *(torch.tensor(golden[key]) for key in ("actions", "loss_noise", "loss_time")))
    assert difference(loss.mean(dim=-1), golden["loss"]) < 1e-4
    for num_steps in (1, 5, 10):
        actions = sample_actions(model, inputs, torch.tensor(golden["noise"]), num_steps)
        assert difference(actions, golden[f"sample_{num_steps}"]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_images_and_prefix_of_openpi_torch(name: str) -> None:
    model, inputs, golden = torch_model(name)
    assert difference(model.vision(inputs.images[:, 0]), golden["out.image_tokens_0"]) < 1e-4
    prefix, valid, _ = model.embed_prefix(inputs)
    assert difference(prefix, golden["out.prefix_embeddings"]) < 1e-4
    assert torch.equal(valid, golden["out.prefix_mask"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_loss_and_samples_of_openpi_torch(name: str, backend: str) -> None:
    model, inputs, golden = torch_model(name, backend)
    loss = model.loss(inputs, golden["in.actions"], golden["in.noise"], golden["in.time"])
    assert difference(loss, golden["out.loss"]) < 1e-4
    for num_steps in (4, 10):
        actions = sample_actions(model, inputs, golden["in.noise"], num_steps)
        assert difference(actions, golden[f"out.actions_{num_steps}_steps"]) < 1e-4


@pytest.mark.parametrize("casting", ["cast", "to"])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_within_two_percent(name: str, casting: str) -> None:
    model, inputs, arrays = jax_model(name)
    getattr(model, casting)(torch.bfloat16)
    actions = sample_actions(model, inputs, torch.tensor(arrays["noise"]))
    assert relative_rms(actions, arrays["sample_10"]) < 0.02
    assert relative_rms(actions, arrays["sample_10_bf16"]) < 0.02  # openpi's own bfloat16 run, rounded elsewhere
    model, inputs, tensors = torch_model(name)
    getattr(model, casting)(torch.bfloat16)
    actions = sample_actions(model, inputs, tensors["in.noise"])
    assert relative_rms(actions, tensors["out.actions_10_steps"]) < 0.02
