"""The loader's laws: every public format, found out from its files; all of a checkpoint or a list of what is wrong."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import (
    GOLDEN,
    golden_config,
    golden_directory,
    golden_tensors,
    golden_tree,
    hollow_torch_directory,
    orbax_directory,
    torch_directory,
)
from public_layouts import EMBED, EXPERT, HEAD, LANGUAGE, openpi_jax_tree, openpi_torch_file
from safetensors.torch import load_file, save_file
from torch import Tensor

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.model.checkpoints import LoadReport, open_checkpoint
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import Pi0

NAMES = ["pi0", "pi05"]
COUNT_IN_FILE = {"pi0": 777, "pi05": 812}
COUNT_IN_TREE = {"pi0": 50, "pi05": 51}
UNTOLD = ("action_horizon", "max_token_len", "num_cameras")
EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
LLM = "PaliGemma/llm/layers"


def loaded(directory: Path, **options: Any) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(directory, **options)
    model = Pi0.empty(checkpoint.config)
    checkpoint.load(model)
    return model.state_dict()


def assert_same(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("name", NAMES)
def test_released_pytorch_files_fit_by_name_and_shape(name: str, tmp_path: Path) -> None:
    tensors = openpi_torch_file(name)
    assert len(tensors) == COUNT_IN_FILE[name]
    checkpoint = open_checkpoint(hollow_torch_directory(tmp_path, tensors))
    assert (checkpoint.format, checkpoint.config) == ("openpi_torch", Pi0Config.preset(name))
    assert checkpoint.assumed == UNTOLD
    assert set(checkpoint.ignored) == {EXPERT_HEAD}


@pytest.mark.parametrize("name", NAMES)
def test_released_lerobot_files_fit_by_name_and_shape(name: str, tmp_path: Path) -> None:
    tensors = {f"model.{key}": tensor for key, tensor in openpi_torch_file(name).items()}
    checkpoint = open_checkpoint(hollow_torch_directory(tmp_path, tensors))
    assert (checkpoint.format, checkpoint.config) == ("lerobot", Pi0Config.preset(name))


@pytest.mark.parametrize("name", NAMES)
def test_released_jax_trees_fit_by_name_and_shape(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorstore", reason="the optional reader of orbax directories is not installed")
    tree = openpi_jax_tree(name)
    assert len(tree) == COUNT_IN_TREE[name]
    checkpoint = open_checkpoint(orbax_directory(tmp_path, tree))
    assert (checkpoint.format, checkpoint.config) == ("openpi_jax", Pi0Config.preset(name))
    assert checkpoint.assumed == UNTOLD


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_read_from_shapes(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(torch_directory(tmp_path, golden_tensors(name), {"action_horizon": 9}))
    expected = golden_config(name)
    told = replace(expected, action_horizon=9, max_token_len=checkpoint.config.max_token_len)
    vision = replace(expected.vision, num_heads=checkpoint.config.vision.num_heads)
    assert checkpoint.config == replace(told, vision=vision)
    assert checkpoint.assumed == ("max_token_len", "num_cameras", "num_kv_heads", "vision.num_heads")


@pytest.mark.parametrize("dropped", [EMBED, HEAD, None])
def test_tied_embedding_under_either_name_or_both(dropped: str | None, tmp_path: Path) -> None:
    tensors = golden_tensors("pi0")
    tensors = {EMBED: tensors[HEAD] if HEAD in tensors else tensors[EMBED], **tensors}
    tensors[HEAD] = tensors[EMBED].clone()
    expected = tensors[EMBED]
    tensors.pop(dropped or "", None)
    assert torch.equal(loaded(torch_directory(tmp_path, tensors))["embedding.weight"], expected)


def test_what_is_missing_and_unknown_is_listed_by_the_names_in_the_file(tmp_path: Path) -> None:
    tensors = openpi_torch_file("pi0")
    del tensors[HEAD], tensors[LANGUAGE + "layers.3.self_attn.k_proj.weight"]
    tensors["value_head.weight"] = torch.empty(1, device="meta")
    tensors["action_in_proj.bias"] = torch.empty(3, device="meta")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(hollow_torch_directory(tmp_path, tensors))
    message = str(caught.value)
    assert f"missing: {HEAD}, {LANGUAGE}layers.3.self_attn.k_proj.weight;" in message
    assert "unexpected: value_head.weight;" in message
    assert "wrong shape: action_in_proj.bias [3] for action_in_proj.bias [1024]." in message


def test_long_lists_are_shortened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        open_checkpoint(torch_directory(tmp_path, {"a": torch.zeros(1)}))


def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path: Path) -> None:
    tensors = {**golden_tensors("pi0"), "action_out_proj.bias": torch.zeros(6, dtype=torch.int32)}
    with pytest.raises(CheckpointError, match=r"not floating point: action_out_proj\.bias"):
        open_checkpoint(torch_directory(tmp_path, tensors))


def lerobot_settings(name: str, **changes: Any) -> dict[str, Any]:
    visual, state = {"type": "VISUAL", "shape": [3, 224, 224]}, {"type": "STATE", "shape": [7]}
    cameras = {f"observation.images.{camera}": visual for camera in ("top", "wrist", "empty_camera_0")}
    settings = {"type": name, "chunk_size": 20, "tokenizer_max_length": 72, "empty_cameras": 2, "n_obs_steps": 1}
    return {**settings, "input_features": {**cameras, "observation.state": state}, **changes}


@pytest.mark.parametrize("prefix", ["", "model.", "model._orig_mod."])
@pytest.mark.parametrize("name", NAMES)
def test_lerobot_directories(name: str, prefix: str, tmp_path: Path) -> None:
    tensors = {prefix + key: tensor for key, tensor in golden_tensors(name).items()}
    checkpoint = open_checkpoint(torch_directory(tmp_path, tensors, lerobot_settings(name)))
    config = checkpoint.config
    assert checkpoint.format == "lerobot"
    assert (config.action_horizon, config.max_token_len, config.num_cameras) == (20, 72, 4)
    assert checkpoint.assumed == ("num_kv_heads", "vision.num_heads")
    assert_same(loaded(tmp_path), loaded(torch_directory(tmp_path / "openpi", golden_tensors(name))))


def legacy(name: str) -> str:
    """The name that LeRobot up to 0.3 gave a tensor."""
    paligemma = "paligemma_with_expert.paligemma."
    name = name.replace(f"{paligemma}model.language_model.", f"{paligemma}language_model.model.")
    name = name.replace(f"{paligemma}lm_head.", f"{paligemma}language_model.lm_head.")
    return "model." + name.replace(f"{paligemma}model.", paligemma)


def test_lerobot_up_to_0_3_with_statistics_among_the_weights(tmp_path: Path) -> None:
    tensors = {legacy(key): tensor for key, tensor in golden_tensors("pi0").items()}
    buffers = {
        "normalize_inputs.buffer_observation_state.mean": torch.arange(7.0),
        "unnormalize_outputs.buffer_action.std": torch.ones(7),
    }
    directory = torch_directory(tmp_path, {**tensors, **buffers}, lerobot_settings("pi0"))
    checkpoint = open_checkpoint(directory)
    assert_same(checkpoint.extras, buffers)
    report = checkpoint.load(Pi0.empty(checkpoint.config))
    assert {report.ignored[key] for key in buffers} == {"statistics for the normalisation"}
    assert_same(loaded(directory), loaded(torch_directory(tmp_path / "openpi", golden_tensors("pi0"))))


def test_lerobot_files_that_went_through_the_other_family(tmp_path: Path) -> None:
    for name, other in (("pi0", "time_mlp"), ("pi05", "action_time_mlp")):
        own = {"pi0": "action_time_mlp", "pi05": "time_mlp"}[name]
        tensors = golden_tensors(name)
        tensors = {other * key.startswith(own) + key.removeprefix(own): tensor for key, tensor in tensors.items()}
        if name == "pi05":
            tensors |= {"state_proj.weight": torch.ones(48, 6), EXPERT + "norm.weight": torch.ones(48)}
        directory = torch_directory(tmp_path / name, tensors, lerobot_settings(name))
        assert_same(loaded(directory), loaded(torch_directory(tmp_path / f"{name}_openpi", golden_tensors(name))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "act"}, "of type 'act'"),
        ({"type": "pi05"}, "says 'pi05' and the tensors beside it are of 'pi0'"),
        ({"chunk_size": "50"}, "chunk_size '50'"),
        ({"chunk_size": 10**9}, "chunk_size 1000000000"),
        ({"tokenizer_max_length": True}, "tokenizer_max_length True"),
        ({"input_features": [1]}, "input_features"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(torch_directory(tmp_path, golden_tensors("pi0"), lerobot_settings("pi0", **changes)))


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "\xff", '{"chunk_size": ' + "9" * 5000 + "}"])
def test_a_damaged_config_json_is_refused(text: str, tmp_path: Path) -> None:
    directory = torch_directory(tmp_path, golden_tensors("pi0"), {})
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(directory)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    tensors = golden_tensors("pi0")
    with pytest.raises(CheckpointError, match=r"action_in_proj\.bias and model\.action_in_proj\.bias"):
        open_checkpoint(torch_directory(tmp_path, {**tensors, "model.action_in_proj.bias": torch.zeros(48)}))


def test_pi05_weights_do_not_fit_a_pi0_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(golden_directory(tmp_path, "pi05"))
    model = Pi0.empty(replace(checkpoint.config, ada_norm="none", state_input="token"))
    with pytest.raises(CheckpointError, match=r"the model lacks: .*modulation.*the checkpoint lacks: .*state_proj"):
        checkpoint.load(model)


def test_the_horizon_may_differ_and_weights_are_cast_to_the_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(golden_directory(tmp_path, "pi0"))
    model = Pi0.empty(replace(checkpoint.config, action_horizon=99, num_cameras=1), torch.bfloat16)
    report = checkpoint.load(model)
    assert model.embedding.weight.dtype == torch.bfloat16
    assert model.action_in_proj.weight.dtype == torch.float32
    expected = checkpoint.state()["embedding.weight"]
    assert torch.equal(model.embedding.weight, expected.bfloat16())
    assert "float32 to bfloat16" in report.converted[HEAD if HEAD in report.converted else EMBED]


def test_the_report_accounts_for_every_tensor(tmp_path: Path) -> None:
    tensors = {**golden_tensors("pi0"), EXPERT_HEAD: torch.zeros(2, 2)}
    checkpoint = open_checkpoint(torch_directory(tmp_path, tensors))
    report = checkpoint.load(Pi0.empty(checkpoint.config))
    assert sorted([*report.used, *report.converted, *report.ignored]) == sorted(tensors)
    assert report.missing == ()
    lines = str(report).splitlines()
    assert lines[0].split() == ["used", str(len(report.used)), "as", "they", "are"]
    assert any(line.endswith(f"the action expert predicts no words: {EXPERT_HEAD}") for line in lines)
    assert lines[-1].split() == ["missing", "0"]
    assert str(LoadReport(("a",), {"b": "x", "c": "x"})).splitlines()[1].split() == ["converted", "2", "x"]


def in_two_files(directory: Path) -> dict[str, str]:
    """Splits the weights of a directory as Hugging Face does; returns which file has which tensor."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return where


def test_weights_in_several_files(tmp_path: Path) -> None:
    directory = golden_directory(tmp_path, "pi05")
    whole = loaded(directory)
    in_two_files(directory)
    assert_same(loaded(directory), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda where: where.popitem(), "not in the index: "),
        (lambda where: where.update({"more": min(where.values())}), "not where the index says: more"),
        (lambda where: where.update(dict.fromkeys(where, "../model.safetensors")), "expected names of files beside it"),
        (lambda where: where.update({"more": "third.safetensors"}), "no weight file .*third"),
        (lambda where: where.clear(), "no 'weight_map'"),
    ],
)
def test_an_index_that_differs_from_its_files_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    directory = golden_directory(tmp_path, "pi0")
    where = in_two_files(directory)
    change(where)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(directory)


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(golden_directory(tmp_path, "pi0"))
    with torch.device("meta"), pytest.raises(ConfigError, match="meta"):
        checkpoint.load(Pi0(checkpoint.config))


def test_a_directory_that_is_no_checkpoint_is_refused_and_told_where_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or params/_METADATA in it\."):
        open_checkpoint(tmp_path)
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match="merge this adapter"):
        open_checkpoint(tmp_path / "peft")
    golden_directory(tmp_path / "run" / "5000", "pi0")
    with pytest.raises(CheckpointError, match=r"there are some in .*run/5000\."):
        open_checkpoint(tmp_path)


@pytest.fixture
def tensorstore() -> Any:
    return pytest.importorskip("tensorstore", reason="the optional reader of orbax directories is not installed")


@pytest.mark.usefixtures("tensorstore")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("before", "after"), [("", ""), ("params/", "/value"), ("", "/value")])
def test_wrappings_of_a_jax_tree_are_dropped(name: str, before: str, after: str, tmp_path: Path) -> None:
    tree = {f"{before}{path}{after}": array for path, array in golden_tree(name).items()}
    assert_same(loaded(orbax_directory(tmp_path, tree)), loaded(GOLDEN / f"orbax_{name}_tiny"))


@pytest.mark.usefixtures("tensorstore")
@pytest.mark.parametrize("rows", [1, 2])
def test_stacked_layers_may_be_stored_in_pieces(rows: int, tmp_path: Path) -> None:
    directory = orbax_directory(tmp_path, golden_tree("pi05"), rows)
    assert_same(loaded(directory), loaded(GOLDEN / "orbax_pi05_tiny"))
    assert_same(loaded(directory / "params"), loaded(directory))  # openpi's own tools take either


@pytest.mark.usefixtures("tensorstore")
def test_bfloat16_arrays_of_a_jax_tree(tmp_path: Path) -> None:
    tree = golden_tree("pi0")
    tree["state_proj/bias"] = exact = torch.tensor(tree["state_proj/bias"]).bfloat16()
    assert torch.equal(loaded(orbax_directory(tmp_path, tree))["state_proj.bias"], exact.float())


@pytest.mark.usefixtures("tensorstore")
def test_lora_factors_are_merged_with_scaling_in_the_attention_only(tmp_path: Path) -> None:
    tree, generator = golden_tree("pi0"), np.random.default_rng(0)

    def factors(path: str, before: str) -> np.ndarray:
        *stack, rows, columns = tree[path].shape
        a, b = (generator.normal(size=(*stack, *shape)).astype(np.float32) for shape in ((rows, 4), (4, columns)))
        factored[f"{before}lora_a"], factored[f"{before}lora_b"] = a, b
        return a @ b

    factored: dict[str, Any] = {}
    merged = dict(tree)
    for part in ("q_einsum", "kv_einsum_1", "attn_vec_einsum"):
        merged[f"{LLM}/attn/{part}/w"] = tree[f"{LLM}/attn/{part}/w"] + 0.5 * factors(
            f"{LLM}/attn/{part}/w", f"{LLM}/attn/{part}/"
        )
    for part in ("mlp/gating_einsum", "mlp_1/linear"):
        merged[f"{LLM}/{part}"] = tree[f"{LLM}/{part}"] + factors(f"{LLM}/{part}", f"{LLM}/{part}_")
    directory = orbax_directory(tmp_path / "lora", {**tree, **factored})
    got, expected = loaded(directory, lora_scaling=0.5), loaded(orbax_directory(tmp_path / "merged", merged))
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-5)
    checkpoint = open_checkpoint(directory)
    report = checkpoint.load(Pi0.empty(checkpoint.config))
    assert "LoRA merged" in report.converted[f"{LLM}/mlp_1/linear"]
    assert "LoRA merged" not in report.converted[f"{LLM}/mlp/linear"]


@pytest.mark.usefixtures("tensorstore")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PaliGemma/llm/final_norm/scale": None}, "missing: PaliGemma/llm/final_norm/scale"),
        ({"extra/kernel": np.zeros(1)}, "unexpected: extra/kernel"),
        ({"state_proj/bias": None, "state_proj/bias/value": np.zeros(48)}, "unexpected: state_proj/bias/value"),
        ({f"{LLM}/attn/q_einsum/lora_a": np.zeros(1)}, "unexpected: .*lora_a"),
        ({f"{LLM}/mlp/linear_lora_a": np.zeros((3, 5, 2)), f"{LLM}/mlp/linear_lora_b": np.zeros((3, 2, 96))}, "LoRA"),
        ({f"{LLM}/attn/q_einsum/w": np.zeros((3, 4))}, "wrong shape: .*q_einsum/w"),
        ({f"{LLM}/attn/q_einsum/w": torch.empty(10**6, 8, 96, 16, device="meta")}, "depth is 1000000"),
        ({"state_proj/bias": np.zeros(48, np.int32)}, "not floating point: state_proj/bias"),
    ],
)
def test_jax_trees_that_are_not_whole_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tree = {path: array for path, array in {**golden_tree("pi0"), **changes}.items() if array is not None}
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(orbax_directory(tmp_path, tree))


@pytest.mark.usefixtures("tensorstore")
def test_an_orbax_directory_that_is_damaged_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(GOLDEN / "orbax_pi0_tiny", damaged)
    shutil.rmtree(damaged / "params" / "ocdbt.process_0")
    with pytest.raises(CheckpointError, match="cannot be read"):
        loaded(damaged)
    (damaged / "params" / "_METADATA").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_checkpoint(damaged)


@pytest.mark.usefixtures("tensorstore")
def test_arrays_without_data_are_refused(tmp_path: Path) -> None:
    tree = {**golden_tree("pi0"), "state_proj/bias": torch.empty(48, device="meta")}
    checkpoint = open_checkpoint(orbax_directory(tmp_path, tree))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(Pi0.empty(checkpoint.config))


def test_orbax_directories_need_tensorstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ConfigError, match="tensorstore"):
        open_checkpoint(GOLDEN / "orbax_pi0_tiny")


def test_a_policy_json_beside_public_weights_changes_nothing(tmp_path: Path) -> None:
    directory = golden_directory(tmp_path, "pi0")
    (directory / "policy.json").write_text(json.dumps({"num_steps": 4}))
    assert open_checkpoint(directory).format == "openpi_torch"
