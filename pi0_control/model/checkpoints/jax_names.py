"""The names and layouts of openpi's JAX checkpoints: layers stacked, kernels transposed, heads apart."""

from collections.abc import Mapping

from torch import Tensor

from pi0_control.model.checkpoints.moves import Move, Shape
from pi0_control.model.checkpoints.sizes import SizesOf
from pi0_control.model.config import Pi0Config

_IMG, _LLM = "PaliGemma/img", "PaliGemma/llm"
_BLOCK = f"{_IMG}/Transformer/encoderblock"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
LORA = {  # adapters beside a matrix: names of both factors, and whether alpha / rank scales their product
    **{
        f"{_LLM}/layers/attn/{part}_einsum{ending}/w": (f"{_LLM}/layers/attn/{part}_einsum{ending}/lora_{{}}", True)
        for part in ("q", "kv", "attn_vec")
        for ending in ("", "_1")
    },
    **{
        f"{_LLM}/layers/mlp{ending}/{part}": (f"{_LLM}/layers/mlp{ending}/{part}_lora_{{}}", False)
        for part in ("gating_einsum", "linear")
        for ending in ("", "_1")
    },
}


def jax_moves(config: Pi0Config) -> list[Move]:
    """How openpi's arrays become the tensors of a public model of these sizes."""
    moves = _vision_moves(config)
    moves.append(Move(f"{_LLM}/embedder/input_embedding", ("embedding.weight",)))
    for expert, ending in (("prefix", ""), ("suffix", "_1")):
        moves += _expert_moves(expert, ending, config)
    names = ["action_in_proj", "action_out_proj"]
    if config.ada_norm == "none":
        names += ["state_proj", "action_time_mlp_in", "action_time_mlp_out"]
    else:
        names += ["time_mlp_in", "time_mlp_out"]
    for name in names:
        moves += _dense(name, (name,))
    return moves


def _vision_moves(config: Pi0Config) -> list[Move]:
    width, depth = config.vision.width, config.vision.depth

    def block(part: str) -> tuple[str, ...]:
        return tuple(f"vision.blocks.{index}.{part}" for index in range(depth))

    moves = [
        Move(f"{_IMG}/embedding/kernel", ("vision.stem.weight",), layout=_convolution),
        Move(f"{_IMG}/embedding/bias", ("vision.stem.bias",)),
        Move(f"{_IMG}/pos_embedding", ("vision.position",), layout=_without_batch),
        *_layer_norm(f"{_IMG}/Transformer/encoder_norm", ("vision.norm",)),
        *_dense(f"{_IMG}/head", ("vision.head",)),
    ]
    for index, part in enumerate(("query", "key", "value")):
        rows, qkv = (index * width, (index + 1) * width), f"{_ATTENTION}/{part}"
        moves.append(Move(f"{qkv}/kernel", block("qkv.weight"), rows, _from_heads, True))
        moves.append(Move(f"{qkv}/bias", block("qkv.bias"), rows, _flat, True))
    moves.append(Move(f"{_ATTENTION}/out/kernel", block("out.weight"), layout=_to_heads, is_stacked=True))
    moves.append(Move(f"{_ATTENTION}/out/bias", block("out.bias"), is_stacked=True))
    for index in (0, 1):
        moves += _layer_norm(f"{_BLOCK}/LayerNorm_{index}", block(f"norm{index + 1}"), True)
        moves += _dense(f"{_BLOCK}/MlpBlock_0/Dense_{index}", block(f"fc{index + 1}"), True)
    return moves


def _expert_moves(expert: str, ending: str, config: Pi0Config) -> list[Move]:
    def layer(part: str) -> tuple[str, ...]:
        return tuple(f"{expert}_layers.{index}.{part}" for index in range(config.depth))

    queries = config.num_heads * config.head_dim
    attention, mlp = f"{_LLM}/layers/attn", f"{_LLM}/layers/mlp{ending}"
    moves = [
        Move(f"{attention}/q_einsum{ending}/w", layer("qkv.weight"), (0, queries), _per_head, True),
        Move(f"{attention}/kv_einsum{ending}/w", layer("qkv.weight"), (queries, None), _keys_values, True),
        Move(f"{attention}/attn_vec_einsum{ending}/w", layer("out.weight"), layout=_to_heads, is_stacked=True),
        Move(f"{mlp}/gating_einsum", layer("gate_up.weight"), layout=_per_head, is_stacked=True),
        Move(f"{mlp}/linear", layer("down.weight"), layout=_transposed, is_stacked=True),
    ]
    norms = {"layers/pre_attention_norm": layer("norm1"), "layers/pre_ffw_norm": layer("norm2")}
    for norm, targets in {**norms, "final_norm": (f"{expert}_norm",)}.items():
        path, is_stacked = f"{_LLM}/{norm}{ending}", norm != "final_norm"
        if expert == "suffix" and config.ada_norm != "none":
            moves += _dense(f"{path}/Dense_0", tuple(f"{target}.modulation" for target in targets), is_stacked)
        else:
            scales = tuple(f"{target}.scale" for target in targets)
            moves.append(Move(f"{path}/scale", scales, is_stacked=is_stacked))
    return moves


def _dense(path: str, targets: tuple[str, ...], is_stacked: bool = False) -> list[Move]:
    weights, biases = (tuple(f"{target}.{kind}" for target in targets) for kind in ("weight", "bias"))
    return [
        Move(f"{path}/kernel", weights, layout=_transposed, is_stacked=is_stacked),
        Move(f"{path}/bias", biases, is_stacked=is_stacked),
    ]


def _layer_norm(path: str, targets: tuple[str, ...], is_stacked: bool = False) -> list[Move]:
    weights, biases = (tuple(f"{target}.{kind}" for target in targets) for kind in ("weight", "bias"))
    return [Move(f"{path}/scale", weights, is_stacked=is_stacked), Move(f"{path}/bias", biases, is_stacked=is_stacked)]


def _transposed(kernel: Tensor) -> Tensor:
    return kernel.permute(1, 0)


def _convolution(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1)  # [h, w, in, out] -> [out, in, h, w]


def _without_batch(position: Tensor) -> Tensor:
    return position.flatten(0, 1)  # [1, tokens, D] -> [tokens, D]


def _flat(bias: Tensor) -> Tensor:
    return bias.flatten()  # [N, H] -> [N * H]


def _from_heads(kernel: Tensor) -> Tensor:
    return kernel.flatten(1).permute(1, 0)  # [D, N, H] -> [N * H, D]


def _to_heads(kernel: Tensor) -> Tensor:
    return kernel.flatten(0, 1).permute(1, 0)  # [N, H, D] -> [D, N * H]


def _per_head(kernel: Tensor) -> Tensor:
    return kernel.permute(0, 2, 1).flatten(0, 1)  # [N, D, H] -> [N * H, D]


def _keys_values(kernel: Tensor) -> Tensor:
    return kernel.permute(0, 1, 3, 2).flatten(0, 2)  # [2, K, D, H] -> [2 * K * H, D]


def jax_sizes(shapes: Mapping[str, Shape]) -> SizesOf:
    """What the shapes of openpi's arrays tell of the model."""
    sizes = SizesOf(shapes, "pi05" if "time_mlp_in/kernel" in shapes else "pi0")
    sizes.read("vision.width", f"{_IMG}/embedding/kernel", 3)
    sizes.read("vision.patch_size", f"{_IMG}/embedding/kernel", 0)
    sizes.read("vision.depth", f"{_BLOCK}/LayerNorm_0/scale", 0)
    sizes.read("vision.num_heads", f"{_ATTENTION}/query/kernel", 2)
    sizes.read("vision.mlp_dim", f"{_BLOCK}/MlpBlock_0/Dense_0/kernel", 2)
    sizes.read("vocab_size", f"{_LLM}/embedder/input_embedding", 0)
    sizes.read("prefix_width", f"{_LLM}/embedder/input_embedding", 1)
    sizes.read("depth", f"{_LLM}/layers/attn/q_einsum/w", 0)
    sizes.read("num_heads", f"{_LLM}/layers/attn/q_einsum/w", 1)
    sizes.read("head_dim", f"{_LLM}/layers/attn/q_einsum/w", 3)
    sizes.read("num_kv_heads", f"{_LLM}/layers/attn/kv_einsum/w", 2)
    sizes.read("prefix_mlp_dim", f"{_LLM}/layers/mlp/linear", 1)
    sizes.read("action_mlp_dim", f"{_LLM}/layers/mlp_1/linear", 1)
    sizes.read("action_dim", "action_in_proj/kernel", 0)
    sizes.read("action_width", "action_in_proj/kernel", 1)
    sizes.read_tokens(f"{_IMG}/pos_embedding", 1)
    return sizes
