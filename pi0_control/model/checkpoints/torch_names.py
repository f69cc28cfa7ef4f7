"""The names of openpi's PyTorch checkpoints and of LeRobot's, which are openpi's behind ``model.`` or older ones."""

from collections.abc import Iterable, Mapping

from pi0_control.model.checkpoints.moves import ALL_ROWS, Move, Shape, raise_problems
from pi0_control.model.checkpoints.sizes import SizesOf
from pi0_control.model.config import Pi0Config

_PALIGEMMA = "paligemma_with_expert.paligemma."
_VISION = _PALIGEMMA + "model.vision_tower.vision_model."
_LANGUAGE = _PALIGEMMA + "model.language_model."
_EXPERT = "paligemma_with_expert.gemma_expert."
EMBEDDING, TIED_HEAD = _LANGUAGE + "embed_tokens.weight", _PALIGEMMA + "lm_head.weight"
EXPERT_HEAD = _EXPERT + "lm_head.weight"

_LEGACY = {  # LeRobot up to 0.3, in the order of Transformers before 4.52
    _PALIGEMMA + "language_model.lm_head.": _PALIGEMMA + "lm_head.",
    _PALIGEMMA + "language_model.model.": _LANGUAGE,
    _PALIGEMMA + "vision_tower.": _PALIGEMMA + "model.vision_tower.",
    _PALIGEMMA + "multi_modal_projector.": _PALIGEMMA + "model.multi_modal_projector.",
}
LEGACY_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")


def is_public(config: Pi0Config) -> bool:
    """Whether openpi and LeRobot have models like it, whatever their sizes."""
    is_family = (config.state_input, config.ada_norm) in (("token", "none"), ("none", "adarms"))
    return is_family and config.is_public_architecture and config.vision.stem == "patch"


def torch_moves(config: Pi0Config) -> list[Move]:
    """How openpi's tensors become those of a public model of these sizes."""
    names = {
        _VISION + "embeddings.patch_embedding.weight": "vision.stem.weight",
        _VISION + "embeddings.patch_embedding.bias": "vision.stem.bias",
        _VISION + "embeddings.position_embedding.weight": "vision.position",
        **_both(_VISION + "post_layernorm", "vision.norm"),
        **_both(_PALIGEMMA + "model.multi_modal_projector.linear", "vision.head"),
        TIED_HEAD: "embedding.weight",
        _LANGUAGE + "norm.weight": "prefix_norm.scale",
        **_norm(_EXPERT + "model.norm", "suffix_norm", config),
    }
    projections = ["action_in_proj", "action_out_proj"]
    if config.ada_norm == "none":
        projections += ["state_proj", "action_time_mlp_in", "action_time_mlp_out"]
    else:
        projections += ["time_mlp_in", "time_mlp_out"]
    for projection in projections:
        names |= _both(projection, projection)
    moves = [Move(theirs, (ours,)) for theirs, ours in names.items()]
    for index in range(config.vision.depth):
        moves += _vision_block(f"{_VISION}encoder.layers.{index}.", f"vision.blocks.{index}.", config.vision.width)
    for index in range(config.depth):
        moves += _gemma_layer(f"{_LANGUAGE}layers.{index}.", f"prefix_layers.{index}.", config, config.prefix_mlp_dim)
        suffix = f"{_EXPERT}model.layers.{index}.", f"suffix_layers.{index}."
        moves += _gemma_layer(*suffix, config, config.action_mlp_dim)
        for theirs, ours in (("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2")):
            moves.append(Move(f"{_LANGUAGE}layers.{index}.{theirs}.weight", (f"prefix_layers.{index}.{ours}.scale",)))
            norms = _norm(suffix[0] + theirs, suffix[1] + ours, config)
            moves += [Move(source, (target,)) for source, target in norms.items()]
    return moves


def _both(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


def _norm(theirs: str, ours: str, config: Pi0Config) -> dict[str, str]:
    if config.ada_norm == "none":
        return {f"{theirs}.weight": f"{ours}.scale"}
    return _both(f"{theirs}.dense", f"{ours}.modulation")


def _vision_block(theirs: str, ours: str, width: int) -> list[Move]:
    parts = {
        "layer_norm1": ("norm1", ALL_ROWS),
        "self_attn.q_proj": ("qkv", (0, width)),
        "self_attn.k_proj": ("qkv", (width, 2 * width)),
        "self_attn.v_proj": ("qkv", (2 * width, None)),
        "self_attn.out_proj": ("out", ALL_ROWS),
        "layer_norm2": ("norm2", ALL_ROWS),
        "mlp.fc1": ("fc1", ALL_ROWS),
        "mlp.fc2": ("fc2", ALL_ROWS),
    }
    return [
        Move(source, (target,), rows)
        for part, (our, rows) in parts.items()
        for source, target in _both(theirs + part, ours + our).items()
    ]


def _gemma_layer(theirs: str, ours: str, config: Pi0Config, mlp_dim: int) -> list[Move]:
    q = config.num_heads * config.head_dim
    k = q + config.num_kv_heads * config.head_dim
    parts = {
        "self_attn.q_proj": ("qkv", (0, q)),
        "self_attn.k_proj": ("qkv", (q, k)),
        "self_attn.v_proj": ("qkv", (k, None)),
        "self_attn.o_proj": ("out", ALL_ROWS),
        "mlp.gate_proj": ("gate_up", (0, mlp_dim)),
        "mlp.up_proj": ("gate_up", (mlp_dim, None)),
        "mlp.down_proj": ("down", ALL_ROWS),
    }
    return [Move(f"{theirs}{part}.weight", (f"{ours}{our}.weight",), rows) for part, (our, rows) in parts.items()]


def torch_sizes(shapes: Mapping[str, Shape]) -> SizesOf:
    """What the shapes of openpi's tensors tell of the model; the names are openpi's.

    Heads cannot be told from widths: they are those of the public models, else one key-value head and, in the image
    encoder, heads of 72 numbers, both ``assumed``.
    """
    family = "pi05" if is_pi05(shapes) else "pi0"
    sizes = SizesOf(shapes, family)
    first = f"{_LANGUAGE}layers.0."
    sizes.read("vision.width", _VISION + "embeddings.patch_embedding.weight", 0)
    sizes.read("vision.patch_size", _VISION + "embeddings.patch_embedding.weight", 3)
    sizes.read("vision.mlp_dim", _VISION + "encoder.layers.0.mlp.fc1.weight", 0)
    sizes.read("prefix_width", TIED_HEAD, 1)
    sizes.read("vocab_size", TIED_HEAD, 0)
    sizes.read("prefix_mlp_dim", first + "mlp.gate_proj.weight", 0)
    sizes.read("action_mlp_dim", _EXPERT + "model.layers.0.mlp.gate_proj.weight", 0)
    sizes.read("action_width", "action_in_proj.weight", 0)
    sizes.read("action_dim", "action_in_proj.weight", 1)
    sizes.read("head_dim", first + "self_attn.k_proj.weight", 0)
    sizes.count("vision.depth", f"{_VISION}encoder.layers.")
    sizes.count("depth", f"{_LANGUAGE}layers.")
    sizes.read_tokens(_VISION + "embeddings.position_embedding.weight", 0)
    queries = sizes.axis(first + "self_attn.q_proj.weight", 0)
    if queries is not None:
        sizes.values["num_heads"] = max(1, queries // max(1, sizes.values["head_dim"]))
    if sizes.values["head_dim"] != 256:
        sizes.assumed.append("num_kv_heads")
    if sizes.values["vision.width"] != 1152:
        sizes.values["vision.num_heads"] = max(1, sizes.values["vision.width"] // 72)
        sizes.assumed.append("vision.num_heads")
    return sizes


def is_pi05(names: Iterable[str]) -> bool:
    """Whether time conditions the norms of the action expert."""
    return any(name.startswith(_EXPERT) and ".dense." in name for name in names)


def openpi_names(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The tensors of an openpi or LeRobot file under openpi's names, and those that are no weights of the model.

    Returns:
        name in the file by openpi's name; why it is ignored by name in the file. The tied embedding counts as
        ``lm_head``, as in released files, whichever of its names is there.

    Raises:
        CheckpointError: two names in the file mean the same tensor.
    """
    there: dict[str, str] = {}
    ignored: dict[str, str] = {}
    doubles: list[str] = []
    bare_names = {name: _bare(name) for name in sorted(names)}
    has_embedding, pi05 = EMBEDDING in bare_names.values(), is_pi05(bare_names.values())
    for name, bare in bare_names.items():
        why = _why_ignored(bare, pi05, has_embedding)
        if why:
            ignored[name] = why
            continue
        theirs = _renamed(bare, pi05)
        if theirs in there:
            doubles.append(f"{there[theirs]} and {name}")
        there[theirs] = name
    raise_problems({"twice": doubles}, "The checkpoint has some tensors under two names")
    return there, ignored


def _bare(name: str) -> str:
    bare = name.removeprefix("model.").replace("_orig_mod.", "")
    for old, new in _LEGACY.items():
        if bare.startswith(old):
            return new + bare[len(old) :]
    return bare


def _renamed(name: str, pi05: bool) -> str:
    """LeRobot takes the time's layers under the name of either family."""
    if name == EMBEDDING:
        return TIED_HEAD
    if pi05 and name.startswith("action_time_mlp_"):
        return name.removeprefix("action_")
    if not pi05 and name.startswith("time_mlp_"):
        return f"action_{name}"
    return name


def _why_ignored(name: str, pi05: bool, has_embedding: bool) -> str:
    """Why a tensor, under its bare name, is no weight of the model; empty if it is one."""
    if name == EXPERT_HEAD:
        return "the action expert predicts no words"
    if name == TIED_HEAD and has_embedding:
        return "tied to the embedding"
    if name.startswith(LEGACY_STATISTICS):
        return "statistics for the normalisation"
    if pi05 and name.startswith("state_proj."):
        return "π0.5 has its state in the prompt"
    if pi05 and name.startswith(_EXPERT) and name.endswith("norm.weight"):
        return "replaced by a norm that time conditions"
    return ""
