"""Weights written in every format come back bit for bit; a model with switches takes public ones only when told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import golden_config, golden_directory
from public_layouts import openpi_torch_file
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_model import SWITCHES, TINY, TINY_PI05, make_flow, make_inputs, make_model

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.model.checkpoints import (
    load_weights,
    open_checkpoint,
    openpi_settings,
    openpi_tensors,
    save_openpi,
    save_weights,
)
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import Pi0


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


def test_every_wrong_name_and_shape_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
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
    assert "missing: prefix_norm.scale;" in message
    assert "unexpected: extra.weight;" in message
    assert "wrong shape: action_in_proj.bias [3] for action_in_proj.bias [24]." in message
    assert torch.equal(model.embedding.weight, before)


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
        load_weights(make_model(), path)


def test_pickles_and_missing_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pt")
    for name in ("model.pt", "nothing.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_weights(make_model(), tmp_path / name)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("config", [TINY, replace(TINY_PI05, num_kv_heads=2, num_cameras=5)])
def test_public_files_of_ours_come_back_bit_exact_with_everything_about_the_model(
    config: Pi0Config, prefix: str, tmp_path: Path
) -> None:
    state = make_model(config).cast(torch.bfloat16).state_dict()  # of two dtypes
    save_openpi(state, config, tmp_path / "model.safetensors", prefix)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.config) == ("lerobot" if prefix else "openpi_torch", config)
    assert checkpoint.assumed == ()
    again = checkpoint.state()
    assert again.keys() == state.keys()
    assert all(again[name].dtype == state[name].dtype and torch.equal(again[name], state[name]) for name in state)


def test_a_config_json_may_complete_the_header_but_not_contradict_it(tmp_path: Path) -> None:
    config, file = replace(TINY, max_token_len=30), tmp_path / "model.safetensors"
    save_openpi(make_model(config).state_dict(), config, file, "model.", ["action_horizon", "num_cameras"])
    settings = {"type": "pi0", "chunk_size": 20, "tokenizer_max_length": 30}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.config, checkpoint.assumed) == (replace(config, action_horizon=20), ("num_cameras",))
    (tmp_path / "config.json").write_text(json.dumps({**settings, "tokenizer_max_length": 31}))
    with pytest.raises(CheckpointError, match=r"config\.json says max_token_len 31 and the header .* 30; expected the"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_files_for_openpi_have_its_names_and_shapes(name: str) -> None:
    config = Pi0Config.preset(name)
    with torch.device("meta"):
        tensors = openpi_tensors(Pi0(config).state_dict(), config)
    released = openpi_torch_file(name)
    del released["paligemma_with_expert.gemma_expert.lm_head.weight"]
    assert {key: tensor.shape for key, tensor in tensors.items()} == {key: t.shape for key, t in released.items()}


def test_files_for_openpi_have_what_its_strict_loading_asks_for(tmp_path: Path) -> None:
    save_openpi(make_model().state_dict(), TINY, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
        assert not file.get_tensor("paligemma_with_expert.gemma_expert.lm_head.weight").any()
    embedding = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    assert embedding not in names
    assert metadata[embedding] == "paligemma_with_expert.paligemma.lm_head.weight"


def test_openpis_names_for_sizes() -> None:
    settings = openpi_settings(Pi0Config.preset("pi05"), "bfloat16")
    assert settings == {
        "action_dim": 32,
        "action_horizon": 50,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": "bfloat16",
    }
    custom = openpi_settings(TINY, "float32", assumed=("action_horizon",))
    assert custom == {
        "action_dim": 5,
        "paligemma_variant": "custom",
        "action_expert_variant": "custom",
        "precision": "float32",
    }


def test_openpi_tensors_are_views() -> None:
    state = make_model().state_dict()
    tensors = openpi_tensors(state, TINY)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    state["prefix_layers.0.qkv.weight"].zero_()
    assert not tensors["paligemma_with_expert.paligemma.model.language_model.layers.0.self_attn.v_proj.weight"].any()


@pytest.mark.parametrize("changes", [*SWITCHES, {"ada_norm": "adarms"}, {"state_input": "none"}])
def test_what_openpi_has_no_model_for_is_refused(changes: dict[str, Any]) -> None:
    config = replace(TINY, **changes)
    with pytest.raises(ConfigError, match="openpi and LeRobot have no model"):
        openpi_tensors(make_model(config).state_dict(), config)


def test_a_damaged_description_of_the_model_is_refused(tmp_path: Path) -> None:
    state = openpi_tensors(make_model().state_dict(), TINY)
    for text in ("{", "[]", '{"depth": 3}', "[" * 100_000):
        save_file(state, tmp_path / "model.safetensors", {"pi0_control.model": text})
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"ada_norm": "adarms"},
        {"time_embed": "random_fourier"},
        {"vision": replace(TINY.vision, stem="conv", stem_channels=(8,))},
        {"depth": 4},
        {"num_heads": 2},
        {"vocab_size": 2**20},
    ],
)
def test_a_description_of_another_model_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    entry = json.dumps({"model": replace(TINY, **changes).to_dict()})
    state = openpi_tensors(make_model().state_dict(), TINY)
    save_file(state, tmp_path / "model.safetensors", {"pi0_control.model": entry})
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


def test_state_in_a_dtype_is_cast_as_the_model_is(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(golden_directory(tmp_path, "pi05"))
    model = Pi0.empty(golden_config("pi05"))
    checkpoint.load(model)
    state = checkpoint.state(torch.bfloat16)
    for name, tensor in model.cast(torch.bfloat16).state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The directory of the public twin of a config."""

    def write(config: Pi0Config) -> Path:
        directory = tmp_path_factory.mktemp("public")
        twin = config.public_twin()
        twin = twin if twin.ada_norm == "none" else replace(twin, state_input="none")
        save_openpi(make_model(twin, seed=7).state_dict(), twin, directory / "model.safetensors")
        return directory

    return write


def switched(switch: dict[str, Any]) -> Pi0Config:
    """A model with a switch on and the inputs that the public family has."""
    base = TINY if switch.get("ada_norm", "none") == "none" else TINY_PI05
    return replace(base, **switch)


@pytest.mark.parametrize("switch", SWITCHES)
def test_public_weights_are_refused_under_a_switch(switch: dict[str, Any], public: Any) -> None:
    config = switched(switch)
    with pytest.raises(CheckpointError, match="|".join(config.changed_switches)):
        open_checkpoint(public(config)).load(make_model(config))


@pytest.mark.parametrize("switch", SWITCHES)
def test_allowed_switches_load_the_rest_and_list_what_is_missing(switch: dict[str, Any], public: Any) -> None:
    config = switched(switch)
    model, checkpoint = make_model(config), open_checkpoint(public(config))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = checkpoint.load(model, allow_arch_change=True)
    state, after = checkpoint.state(), model.state_dict()
    assert set(report.missing) == set(after) - set(state)
    replaced = {name for name, why in report.ignored.items() if why == "replaced by a switch of the model"}
    assert len(replaced) == len(set(state) - set(after))
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name] if name in report.missing else state[name])


def test_what_is_missing_is_of_the_switch(public: Any) -> None:
    config = replace(TINY, value_residual="learned")
    report = open_checkpoint(public(config)).load(make_model(config), allow_arch_change=True)
    assert report.missing == tuple(
        f"suffix_layers.{index}.value_mix.{kind}" for index in (1, 2) for kind in ("bias", "weight")
    )
    assert "value_mix" in str(report)


def test_allowing_a_change_does_not_excuse_other_sizes(public: Any) -> None:
    config = replace(TINY, value_residual="learned")
    with pytest.raises(CheckpointError, match=r"wrong shape: action_in_proj\.weight \[24, 9\] instead of \[24, 5\]"):
        open_checkpoint(public(config)).load(make_model(replace(config, action_dim=9)), allow_arch_change=True)
