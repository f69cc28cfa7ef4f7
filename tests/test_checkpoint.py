from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_model import SWITCHES, TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import Tensor

from pi0_control.errors import CheckpointError
from pi0_control.model.checkpoint import (
    from_openpi_jax,
    from_openpi_torch,
    load_public_checkpoint,
    load_weights,
    read_safetensors,
    save_weights,
)
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import Pi0

GOLDEN = Path(__file__).parent / "golden"
LANGUAGE = "paligemma_with_expert.paligemma.model.language_model."
EXPERT = "paligemma_with_expert.gemma_expert.model."
EMBED, HEAD = LANGUAGE + "embed_tokens.weight", "paligemma_with_expert.paligemma.lm_head.weight"
COUNT_IN_FILE = {"pi0": 777, "pi05": 812}
COUNT_IN_TREE = {"pi0": 50, "pi05": 51}


def empty(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def openpi_torch_file(name: str) -> dict[str, Tensor]:
    """Every tensor of a released PyTorch file, by shape; the embedding under the name safetensors keeps."""
    vision = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
    shapes: dict[str, tuple[int, ...]] = {
        vision + "embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        vision + "embeddings.patch_embedding.bias": (1152,),
        vision + "embeddings.position_embedding.weight": (256, 1152),
        vision + "post_layernorm.weight": (1152,),
        vision + "post_layernorm.bias": (1152,),
        "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.weight": (2048, 1152),
        "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.bias": (2048,),
        HEAD: (257152, 2048),
        "paligemma_with_expert.gemma_expert.lm_head.weight": (257152, 1024),
        LANGUAGE + "norm.weight": (2048,),
        "action_in_proj.weight": (1024, 32),
        "action_in_proj.bias": (1024,),
        "action_out_proj.weight": (32, 1024),
        "action_out_proj.bias": (32,),
    }
    for index in range(27):
        block = f"{vision}encoder.layers.{index}."
        for part, shape in {
            "layer_norm1": (1152,),
            "layer_norm2": (1152,),
            **{f"self_attn.{each}_proj": (1152, 1152) for each in ("q", "k", "v", "out")},
            "mlp.fc1": (4304, 1152),
            "mlp.fc2": (1152, 4304),
        }.items():
            shapes |= {f"{block}{part}.weight": shape, f"{block}{part}.bias": shape[:1]}
    for layers, width, mlp_dim in ((LANGUAGE, 2048, 16384), (EXPERT, 1024, 4096)):
        for index in range(18):
            layer = f"{layers}layers.{index}."
            shapes |= {
                layer + "self_attn.q_proj.weight": (2048, width),
                layer + "self_attn.k_proj.weight": (256, width),
                layer + "self_attn.v_proj.weight": (256, width),
                layer + "self_attn.o_proj.weight": (width, 2048),
                layer + "mlp.gate_proj.weight": (mlp_dim, width),
                layer + "mlp.up_proj.weight": (mlp_dim, width),
                layer + "mlp.down_proj.weight": (width, mlp_dim),
            }
            if layers == LANGUAGE:
                shapes |= {
                    layer + f"{norm}.weight": (2048,) for norm in ("input_layernorm", "post_attention_layernorm")
                }
    norms = [
        f"layers.{index}.{norm}" for index in range(18) for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    linears = ["time_mlp_in", "time_mlp_out"] if name == "pi05" else ["action_time_mlp_out"]
    for norm in (*norms, "norm"):
        if name == "pi05":
            shapes |= {f"{EXPERT}{norm}.dense.weight": (3072, 1024), f"{EXPERT}{norm}.dense.bias": (3072,)}
        else:
            shapes[f"{EXPERT}{norm}.weight"] = (1024,)
    if name == "pi0":
        shapes |= {"state_proj.weight": (1024, 32), "state_proj.bias": (1024,)}
        shapes |= {"action_time_mlp_in.weight": (1024, 2048), "action_time_mlp_in.bias": (1024,)}
    for linear in linears:
        shapes |= {f"{linear}.weight": (1024, 1024), f"{linear}.bias": (1024,)}
    return empty(shapes)


def openpi_jax_tree(name: str) -> dict[str, Tensor]:
    """Every leaf of a released JAX tree, by shape."""
    image, language = "PaliGemma/img", "PaliGemma/llm"
    block = f"{image}/Transformer/encoderblock"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    linears: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        f"{image}/embedding": ((14, 14, 3, 1152), (1152,)),
        f"{image}/head": ((1152, 2048), (2048,)),
        f"{block}/MlpBlock_0/Dense_0": ((27, 1152, 4304), (27, 4304)),
        f"{block}/MlpBlock_0/Dense_1": ((27, 4304, 1152), (27, 1152)),
        **{f"{attention}/{part}": ((27, 1152, 16, 72), (27, 16, 72)) for part in ("query", "key", "value")},
        f"{attention}/out": ((27, 16, 72, 1152), (27, 1152)),
        "action_in_proj": ((32, 1024), (1024,)),
        "action_out_proj": ((1024, 32), (32,)),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"{image}/pos_embedding": (1, 256, 1152),
        f"{language}/embedder/input_embedding": (257152, 2048),
        f"{language}/final_norm/scale": (2048,),
        f"{language}/layers/pre_attention_norm/scale": (18, 2048),
        f"{language}/layers/pre_ffw_norm/scale": (18, 2048),
    }
    for ending, width, mlp_dim in (("", 2048, 16384), ("_1", 1024, 4096)):
        shapes |= {
            f"{language}/layers/attn/q_einsum{ending}/w": (18, 8, width, 256),
            f"{language}/layers/attn/kv_einsum{ending}/w": (18, 2, 1, width, 256),
            f"{language}/layers/attn/attn_vec_einsum{ending}/w": (18, 8, 256, width),
            f"{language}/layers/mlp{ending}/gating_einsum": (18, 2, width, mlp_dim),
            f"{language}/layers/mlp{ending}/linear": (18, mlp_dim, width),
        }
    norms = {f"{language}/layers/pre_attention_norm_1": (18,), f"{language}/layers/pre_ffw_norm_1": (18,)}
    for norm, layers in {**norms, f"{language}/final_norm_1": ()}.items():
        if name == "pi05":
            linears[f"{norm}/Dense_0"] = ((*layers, 1024, 3072), (*layers, 3072))
        else:
            shapes[f"{norm}/scale"] = (*layers, 1024)
    if name == "pi05":
        linears |= dict.fromkeys(("time_mlp_in", "time_mlp_out"), ((1024, 1024), (1024,)))
    else:
        linears |= {"state_proj": ((32, 1024), (1024,)), "action_time_mlp_in": ((2048, 1024), (1024,))}
        linears["action_time_mlp_out"] = ((1024, 1024), (1024,))
    for norm in (f"{block}/LayerNorm_0", f"{block}/LayerNorm_1"):
        shapes |= {f"{norm}/scale": (27, 1152), f"{norm}/bias": (27, 1152)}
    shapes |= {f"{image}/Transformer/encoder_norm/{kind}": (1152,) for kind in ("scale", "bias")}
    shapes |= {f"{linear}/kernel": kernel for linear, (kernel, _) in linears.items()}
    return empty(shapes | {f"{linear}/bias": bias for linear, (_, bias) in linears.items()})


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
