import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from public_layouts import EMBED, HEAD, LANGUAGE, openpi_jax_tree, openpi_torch_file
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_model import SWITCHES, TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import Tensor

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.model.checkpoint import (
    from_openpi_jax,
    from_openpi_torch,
    load_public_checkpoint,
    load_weights,
    read_openpi_jax,
    read_safetensors,
    save_weights,
)
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import Pi0

GOLDEN = Path(__file__).parent / "golden"
COUNT_IN_FILE = {"pi0": 777, "pi05": 812}
COUNT_IN_TREE = {"pi0": 50, "pi05": 51}


def meta_model(name: str) -> Pi0:
    with torch.device("meta"):
        return Pi0(Pi0Config.preset(name))


def golden_tree(name: str) -> dict[str, np.ndarray]:
    arrays = np.load(GOLDEN / f"{name}_tiny.npz")
    return {path[6:]: arrays[path] for path in arrays.files if path.startswith("param:")}


def golden_tensors(name: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN / f"openpi_torch_{name}_tiny.safetensors", "pt") as file:
        return {key[8:]: file.get_tensor(key) for key in file.keys() if key.startswith("weights.")}  # noqa: SIM118


def public_state(config: Pi0Config) -> dict[str, Tensor]:
    return make_model(config.public_twin(), seed=7).state_dict()


@pytest.mark.parametrize("config", [TINY, TINY_PI05, replace(TINY, time_embed="random_fourier")])
def test_saved_weights_come_back_bit_exact(config: Pi0Config, tmp_path: Path) -> None:
    model, other = make_model(config), make_model(config, seed=1)
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    inputs, (_, noise, time) = make_inputs(config), make_flow(config)
    assert torch.equal(model.velocity(inputs, noise, time), other.velocity(inputs, noise, time))


def test_weights_are_cast_to_the_model(tmp_path: Path) -> None:
    save_weights(make_model().to(torch.bfloat16), tmp_path / "model.safetensors")
    model = make_model(seed=1)
    load_weights(model, tmp_path / "model.safetensors")
    assert model.dtype == torch.float32
    assert torch.equal(model.embedding.weight, make_model().embedding.weight.bfloat16().float())


def test_a_model_on_the_meta_device_takes_the_tensors(tmp_path: Path) -> None:
    save_weights(make_model(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = Pi0(TINY)
    load_weights(model, tmp_path / "model.safetensors")
    assert model.device.type == "cpu"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_wrong_name_and_shape_is_listed(tmp_path: Path) -> None:
    state = make_model().state_dict()
    del state["prefix_norm.scale"]
    state["extra.weight"] = torch.zeros(2)
    state["action_in_proj.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "model.safetensors")
    model = make_model(seed=1)
    before = model.embedding.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "model.safetensors")
    message = str(caught.value)
    assert "missing: prefix_norm.scale" in message
    assert "unexpected: extra.weight" in message
    assert "wrong shape: action_in_proj.bias [3] instead of [24]" in message
    assert torch.equal(model.embedding.weight, before)


def test_long_lists_are_shortened(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        load_weights(make_model(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(make_model(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if kept == 0.5 else int(kept)])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(make_model(), path)


@pytest.mark.parametrize("start", [b"\xff" * 16, (64).to_bytes(8, "little") + b"{not json" * 8, b"PK\x03\x04" * 8])
def test_a_corrupt_header_is_refused(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(make_model(), path)
    path.write_bytes(start + path.read_bytes()[len(start) :])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_safetensors(path)


def test_pickles_and_missing_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pt")
    for name in ("model.pt", "nothing.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_weights(make_model(), tmp_path / name)


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_released_pytorch_files_fit_by_name_and_shape(name: str) -> None:
    tensors = openpi_torch_file(name)
    assert len(tensors) == COUNT_IN_FILE[name]
    report = load_public_checkpoint(meta_model(name), from_openpi_torch(tensors))
    assert report.fresh == report.unused == ()


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_released_jax_trees_fit_by_name_and_shape(name: str) -> None:
    tree = openpi_jax_tree(name)
    assert len(tree) == COUNT_IN_TREE[name]
    report = load_public_checkpoint(meta_model(name), from_openpi_jax(tree))
    assert report.fresh == report.unused == ()


@pytest.mark.parametrize("dropped", [EMBED, HEAD, None])
def test_tied_embedding_under_either_name_or_both(dropped: str | None) -> None:
    tensors = golden_tensors("pi0")
    expected = tensors[EMBED]
    tensors.pop(dropped or "", None)
    state = from_openpi_torch(tensors)
    assert torch.equal(state["embedding.weight"], expected)
    assert not [name for name in state if "lm_head" in name]


def test_an_embedding_under_no_name_is_missing() -> None:
    tensors = openpi_torch_file("pi0")
    del tensors[HEAD]
    with pytest.raises(CheckpointError, match=r"missing: embedding\.weight"):
        load_public_checkpoint(meta_model("pi0"), from_openpi_torch(tensors))


def test_a_missing_projection_and_an_unknown_tensor_are_listed() -> None:
    tensors = openpi_torch_file("pi0")
    del tensors[LANGUAGE + "layers.3.self_attn.k_proj.weight"]
    tensors["value_head.weight"] = torch.empty(1, device="meta")
    with pytest.raises(CheckpointError) as caught:
        load_public_checkpoint(meta_model("pi0"), from_openpi_torch(tensors))
    assert "missing: prefix_layers.3.qkv.weight" in str(caught.value)
    assert "value_head.weight" in str(caught.value)


def test_pi05_weights_do_not_fit_pi0() -> None:
    with pytest.raises(CheckpointError, match=r"missing: .*action_time_mlp_in.*unexpected: .*modulation"):
        load_public_checkpoint(meta_model("pi0"), from_openpi_torch(openpi_torch_file("pi05")))


@pytest.mark.parametrize(("before", "after"), [("", ""), ("params/", "/value"), ("", "/value")])
def test_wrappings_of_a_jax_tree_are_dropped(before: str, after: str) -> None:
    tree = golden_tree("pi05")
    wrapped = from_openpi_jax({f"{before}{path}{after}": array for path, array in tree.items()})
    plain = from_openpi_jax(tree)
    assert wrapped.keys() == plain.keys()
    assert all(torch.equal(wrapped[name], plain[name]) for name in plain)


def test_value_is_dropped_only_if_every_leaf_has_it() -> None:
    tree: dict[str, Any] = golden_tree("pi0")
    tree["state_proj/bias/value"] = tree.pop("state_proj/bias")
    with pytest.raises(CheckpointError, match="missing: state_proj/bias; unexpected: state_proj/bias/value"):
        from_openpi_jax(tree)


def test_jax_leaves_missing_unknown_lora_or_misshapen_are_refused() -> None:
    tree: dict[str, Any] = golden_tree("pi0")
    broken = dict(tree)
    del broken["PaliGemma/llm/final_norm/scale"]
    with pytest.raises(CheckpointError, match="missing: PaliGemma/llm/final_norm/scale"):
        from_openpi_jax(broken)
    with pytest.raises(CheckpointError, match="LoRA"):
        from_openpi_jax({**tree, "PaliGemma/llm/layers/attn/q_einsum/lora_a": np.zeros(1)})
    with pytest.raises(CheckpointError, match="shapes"):
        from_openpi_jax({**tree, "PaliGemma/llm/layers/attn/q_einsum/w": np.zeros((3, 4), np.float32)})
    with pytest.raises(CheckpointError, match="missing"):
        from_openpi_jax({})


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_an_orbax_directory_holds_the_same_arrays(name: str) -> None:
    pytest.importorskip("tensorstore", reason="the optional reader of orbax directories is not installed")
    state, expected = (
        from_openpi_jax(read_openpi_jax(GOLDEN / f"orbax_{name}_tiny")),
        from_openpi_jax(golden_tree(name)),
    )
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


def test_an_orbax_directory_that_is_damaged_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorstore", reason="the optional reader of orbax directories is not installed")
    damaged = tmp_path / "damaged"
    shutil.copytree(GOLDEN / "orbax_pi0_tiny", damaged)
    shutil.rmtree(damaged / "params" / "ocdbt.process_0")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_openpi_jax(damaged)
    (damaged / "params" / "_METADATA").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_openpi_jax(damaged)


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="params/_METADATA"):
        read_openpi_jax(tmp_path)


def test_orbax_directories_need_tensorstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ConfigError, match="tensorstore"):
        read_openpi_jax(GOLDEN / "orbax_pi0_tiny")


def test_bfloat16_arrays_of_a_jax_tree() -> None:
    tree: dict[str, Any] = golden_tree("pi0")
    exact = torch.tensor(tree["state_proj/bias"]).bfloat16()
    bits = exact.view(torch.uint16).numpy()
    # numpy has no bfloat16 of its own; extensions that add it behave like this
    tree["state_proj/bias"] = SimpleNamespace(dtype=SimpleNamespace(name="bfloat16"), view={"uint16": bits}.get)
    assert torch.equal(from_openpi_jax(tree)["state_proj.bias"], exact)


@pytest.mark.parametrize("switch", SWITCHES)
def test_public_weights_are_refused_under_a_switch(switch: dict[str, Any]) -> None:
    config = replace(TINY, **switch)
    with pytest.raises(CheckpointError, match="|".join(config.changed_switches)):
        load_public_checkpoint(make_model(config), public_state(config))


@pytest.mark.parametrize("switch", SWITCHES)
def test_allowed_switches_load_the_rest_and_list_what_is_fresh(switch: dict[str, Any]) -> None:
    config = replace(TINY, **switch)
    model, state = make_model(config), public_state(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_public_checkpoint(model, state, allow_arch_change=True)
    after = model.state_dict()
    assert set(report.fresh) == set(after) - set(state)
    assert set(report.unused) == set(state) - set(after)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name] if name in report.fresh else state[name])


def test_fresh_names_are_those_of_the_switch() -> None:
    config = replace(TINY, value_residual="learned")
    report = load_public_checkpoint(make_model(config), public_state(config), allow_arch_change=True)
    assert report.fresh == tuple(
        f"suffix_layers.{index}.value_mix.{kind}" for index in (1, 2) for kind in ("bias", "weight")
    )


def test_allowing_a_change_does_not_excuse_other_differences() -> None:
    config = replace(TINY, value_residual="learned")
    state = public_state(config)
    del state["action_out_proj.bias"]
    with pytest.raises(CheckpointError, match=r"missing: action_out_proj\.bias"):
        load_public_checkpoint(make_model(config), state, allow_arch_change=True)
