"""Names and shapes of every tensor in the released π0 and π0.5 checkpoints, on the meta device."""

from collections.abc import Mapping

import torch
from torch import Tensor

LANGUAGE = "paligemma_with_expert.paligemma.model.language_model."
EXPERT = "paligemma_with_expert.gemma_expert.model."
EMBED, HEAD = LANGUAGE + "embed_tokens.weight", "paligemma_with_expert.paligemma.lm_head.weight"


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
