"""The fast path of sampling: the numbers of :func:`sampler.sample_actions` with less work.

What is left out, all of it exact up to the order of rounding: text that is padding and cameras that are masked; masks
where everything is seen; the time embedding, its MLP and every modulation of a norm, which depend on the weights and
the number of steps only; π0's state token after the first step, which sees no action and so never changes; the copy of
the prefix behind which the suffix is written. :class:`Tables` are computed once per (weights, number of steps).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi0_control.model.attention import Attention, attention_mask, positions_of, rope_table, suffix_mask, with_self
from pi0_control.model.float8 import check_float8
from pi0_control.model.gemma import Modulation
from pi0_control.model.layers import Attend, OperatorLayers, Pair, Rope, attend_to_one_head, normed, select
from pi0_control.model.packed import PackedBlocks, can_pack, can_tile, pack_block
from pi0_control.model.pi0 import ModelInputs, Pi0
from pi0_control.model.rtc import Guidance
from pi0_control.model.sampler import Flow, Known, now, sample_actions
from pi0_control.model.siglip import SiglipBlock

if TYPE_CHECKING:
    from pi0_control.model.fused import FusedLayers

_MATRICES = ("qkv", "out", "gate_up", "down", "value_mix")  # of a layer, which tables hold in some ways to compute only


@dataclass(frozen=True)
class Tables:
    """What the weights and the number of steps N decide; row k is step k, row N time 0, that of known actions.

    Attributes:
        last: final norm of the suffix, of each row.
        vision: the blocks of the image encoder; None for its own.
        action_weight, action_bias: x_t [.., action_dim] to the width of the suffix, [width, action_dim] and
            [N + 1, width]; for π0 that is the first matrix of the action-time MLP with the projection of the actions
            folded in and the time as a bias.
        rope: cosines, and sines with the first half negated, of every position, float32 [positions, 1, head_dim].
        layers: all of them, out of operators or a CPU's kernels.
        fused: all of them out of kernels of a GPU; None for operators only.
    """

    last: list[Modulation]
    vision: PackedBlocks | None
    action_weight: Tensor
    action_bias: Tensor
    rope: Rope
    layers: OperatorLayers
    fused: "FusedLayers | None"

    @classmethod
    @torch.no_grad()
    def make(cls, model: Pi0, num_steps: int, packs: bool, fuses: bool, float8: bool) -> "Tables":
        """Of the model as it is now; the rest as for :class:`FastSampler`."""
        config, rows = model.config, range(num_steps + 1)
        time = torch.tensor([1 - step / num_steps for step in rows], device=model.device)
        embedded = model.time_embed(time)
        weight, bias, cond = _action_embedding(model, embedded)
        pairs = [layer.modulations(cond) for layer in model.suffix_layers]
        last = model.suffix_norm.modulate(cond)
        cos, sin = rope_table(torch.arange(config.prefix_len + config.suffix_len, device=model.device), config.head_dim)
        prefix = [_pair(layer.modulations(None), 0, model.dtype) for layer in model.prefix_layers]
        suffix = [[_pair(pair, row, model.dtype) for pair in pairs] for row in rows]
        return cls(
            [_row(last, row, model.dtype) for row in rows],
            _vision(model) if packs else None,
            weight,
            bias,
            (torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)),
            OperatorLayers.make(model, prefix, suffix, packs, float8 and not fuses),
            _fused(model, prefix, suffix, float8) if fuses else None,
        )


def _action_embedding(model: Pi0, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight and biases of the actions' first layer, and the conditioning, for embedded times [N + 1, width]."""
    actions = model.action_in_proj
    if model.config.ada_norm != "none":
        hidden = F.silu(model.time_mlp_in(embedded.to(model.time_mlp_in.weight.dtype)))
        return actions.weight, actions.bias.expand(len(embedded), -1), F.silu(model.time_mlp_out(hidden))
    mlp = model.action_time_mlp_in
    of_actions, of_time = mlp.weight.float().chunk(2, dim=1)
    bias = mlp.bias.float() + of_actions @ actions.bias.float() + embedded @ of_time.mT
    return (of_actions @ actions.weight.float()).to(mlp.weight.dtype), bias.to(mlp.weight.dtype), None


def _fused(model: Pi0, prefix: list[Pair], suffix: list[list[Pair]], float8: bool) -> "FusedLayers":
    from pi0_control.model.fused import FusedLayers  # needs Triton, which comes with PyTorch for a GPU

    return FusedLayers.make(model, prefix, suffix, float8)


def _vision(model: Pi0) -> PackedBlocks | None:
    blocks = cast(Sequence[SiglipBlock], model.vision.blocks)
    if not blocks or not all(map(can_pack, blocks)):
        return None
    if torch.get_num_threads() <= model.config.num_cameras and all(map(can_tile, blocks)):  # a thread takes an image
        from pi0_control.model.tiled import TiledBlock  # needs Numba

        return PackedBlocks([TiledBlock(block) for block in blocks], by_one_thread=True)
    return PackedBlocks([pack_block(block, model.config.vision.num_tokens) for block in blocks], by_one_thread=False)


def _row(modulation: Modulation, row: int, dtype: torch.dtype) -> Modulation:
    """One row of a modulation, each part [width]; the gate in the dtype of the stream that it acts upon."""
    scale, shift, gate = (part if part is None or part.dim() == 1 else part[row, 0] for part in modulation)
    return Modulation(cast(Tensor, scale).contiguous(), shift, gate if gate is None else gate.to(dtype))


def _pair(pair: Pair, row: int, dtype: torch.dtype) -> Pair:
    return _row(pair[0], row, dtype), _row(pair[1], row, dtype)


@dataclass(frozen=True)
class _Encoded:
    """An encoded prefix with room for the suffix behind it.

    Attributes:
        buffers: keys and values, [layers, 2, B, S + T, kv_heads, head_dim].
        length: tokens of the prefix S.
        seen: uint8 [B, S + T], 0 for padding of the prefix.
        rope: of all S + T places.
        attend_all, attend_actions: for all T tokens of the suffix, and for the actions only.
        tables: that it was encoded with.
    """

    buffers: Tensor
    length: int
    seen: Tensor
    rope: Rope
    attend_all: Attend
    attend_actions: Attend
    tables: Tables


class FastSampler:
    """:func:`sampler.sample_actions` with less work; for the model in whatever state it is when called.

    Guidance with the full jacobian needs a gradient and goes the plain way.

    Args:
        model: the network.
        num_steps: Euler steps N.
        packs: in bfloat16 on a CPU, hold a copy of the layers' matrices as its kernels want them, 5.4 GB more at full
            size, and let threads take parts of images and prefix as they become free (``crew.py``). Which kernels they
            are is decided for as many threads as PyTorch has when it first samples.
        fuses: on a GPU, run the layers with kernels of our own (``kernels.py``); for models that ``can_fuse``.
        float8: multiply the prefix in float8 (``float8.py``), with a copy of its matrices; not the same numbers.

    Raises:
        ConfigError: no float8 with this model on this device.
    """

    def __init__(
        self, model: Pi0, num_steps: int = 10, packs: bool = False, fuses: bool = False, float8: bool = False
    ) -> None:
        self.model, self.num_steps, self.packs, self.fuses, self.float8 = model, num_steps, packs, fuses, float8
        if float8:
            check_float8(model)
        self._sources = list(_sources(model, packs, packs or fuses or float8))
        self._state_is_constant = model.config.state_input == "token" and model.config.ada_norm == "none"
        self._tables: Tables | None = None
        self._made_of: tuple[object, ...] = ()
        self._making = Lock()

    @torch.no_grad()
    def __call__(
        self,
        inputs: ModelInputs,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        timing: dict[str, float] | None = None,
        known_actions: Sequence[Tensor] | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """A chunk of actions; arguments, result and errors of :func:`sampler.sample_actions`.

        The inputs may be on the CPU, where it costs least to see what of them is padding.
        """
        model, given, inputs = self.model, inputs, inputs.trimmed()
        is_full, inputs = inputs.is_full, inputs.to(model.device)
        flow = Flow.begin(model.config, inputs, noise, self.num_steps, generator, known_actions, guidance)
        if flow.needs_gradient:
            there = given.to(model.device)
            return sample_actions(model, there, flow.x_t, self.num_steps, None, timing, known_actions, guidance)
        started = now(model.device)
        encoded = self.encode(inputs, is_full)
        middle = now(model.device) if timing is not None else started
        actions = self.denoise(flow, encoded, inputs.state)
        if timing is not None:
            timing["prefix_ms"] = 1000 * (middle - started)
            timing["denoise_ms"] = 1000 * (now(model.device) - middle)
        return actions

    @property
    def tables(self) -> Tables:
        """Those of the present weights, made anew if any weight they are made of has changed."""
        with self._making:
            if (made_of := self.weights) != self._made_of:
                self.forget_tables()  # before others take as much memory again
                self._tables = Tables.make(self.model, self.num_steps, self.packs, self.fuses, self.float8)
                self._made_of = made_of
            return cast(Tables, self._tables)

    def forget_tables(self) -> None:
        """Free what they hold; they are made anew when they are needed."""
        self._tables, self._made_of = None, ()

    @property
    def weights(self) -> tuple[object, ...]:
        """Another value once any weight that tables are made of has changed, other than through ``.data``."""
        return (self.model.dtype, *((tensor.data_ptr(), tensor._version) for tensor in _tensors(self._sources)))

    @torch.no_grad()
    def encode(self, inputs: ModelInputs, is_full: bool) -> _Encoded:
        """The prefix of trimmed inputs; ``is_full`` says that nothing in them is masked."""
        model, config, tables = self.model, self.model.config, self.tables
        x, valid, ar = model.embed_prefix(inputs, is_trimmed=True, vision=tables.vision)
        x, (batch, length), room = x.to(model.dtype), valid.shape, config.suffix_len
        rope = _rope(tables, valid, config.suffix_len, is_full)
        buffers = x.new_empty(config.depth, 2, batch, length + room, config.num_kv_heads, config.head_dim)
        of_prefix = None if is_full else with_self(attention_mask(valid, ar))
        if tables.fused is not None:
            tables.fused.run_prefix(x, rope, self._attend(of_prefix), buffers)
        else:
            parts = x.split(sizes := tables.layers.part_sizes(batch, length), dim=1)
            masks = [None] * len(parts) if of_prefix is None else of_prefix.split(sizes, dim=1)
            tables.layers.run_prefix(parts, rope, [self._attend(each) for each in masks], buffers)
        mask = None if is_full and config.state_input == "none" else suffix_mask(valid, model.suffix_ar())
        actions = None if is_full or mask is None else mask[:, -config.action_horizon :]
        seen = F.pad(valid.to(torch.uint8), (0, room), value=1)
        return _Encoded(buffers, length, seen, rope, self._attend(mask), self._attend(actions), tables)

    @torch.no_grad()
    def denoise(self, flow: Flow, encoded: _Encoded, state: Tensor) -> Tensor:
        """From the noise of the flow to actions [B, horizon, action_dim], given the state [B, action_dim]."""
        has_state = self.model.config.state_input == "token"

        def velocity(x_t: Tensor, step: int) -> Tensor:
            with_state = has_state and (step == 0 or not self._state_is_constant)
            return self._velocity(encoded, state if with_state else None, x_t, step, flow.known)

        return flow.follow(velocity)

    def _velocity(self, encoded: _Encoded, state: Tensor | None, x_t: Tensor, step: int, known: Known | None) -> Tensor:
        model, tables = self.model, encoded.tables
        x = self._embed_actions(tables, x_t, step, known)
        start = encoded.length + model.config.suffix_len - x.shape[1]
        if state is not None:
            token = model.state_proj(state.to(model.state_proj.weight.dtype))
            x, start = torch.cat([token[:, None], x], dim=1), start - 1
        x = x.to(model.dtype)
        mask = None if known is None or model.config.ada_norm == "none" else _token_mask(known, x.shape[1])
        if tables.fused is not None and known is None:
            first_sees = start + 1 if state is not None else start + x.shape[1]
            x = tables.fused.run_suffix(x, step, encoded.rope, encoded.buffers, encoded.seen, start, first_sees)
        else:
            attend = encoded.attend_actions if state is None else encoded.attend_all
            x = tables.layers.run_suffix(x, step, encoded.rope, attend, encoded.buffers, start, mask)
        last = tables.last[step] if mask is None else select(mask, tables.last[-1], tables.last[step])
        hidden = normed(last, x)[:, -model.config.action_horizon :]
        return model.action_out_proj(hidden.to(model.action_out_proj.weight.dtype)).float()

    def _embed_actions(self, tables: Tables, x_t: Tensor, step: int, known: Known | None) -> Tensor:
        """Noisy actions [B, horizon, action_dim] as tokens [B, horizon, action_width]."""
        model = self.model
        x_t = x_t.to(tables.action_weight.dtype)
        if model.config.ada_norm != "none":
            return F.linear(x_t, tables.action_weight, tables.action_bias[step])
        if known is None:
            hidden = F.linear(x_t, tables.action_weight, tables.action_bias[step])
        else:
            bias = torch.where(known.mask[..., None], tables.action_bias[-1], tables.action_bias[step])
            hidden = F.linear(x_t, tables.action_weight) + bias
        return model.action_time_mlp_out(F.silu(hidden))

    def _attend(self, mask: Tensor | None) -> Attend:
        """The attention that is fastest for this dtype and device."""
        config, on_cpu = self.model.config, self.model.device.type == "cpu"
        is_narrow = on_cpu and self.model.dtype != torch.float32  # products are faster there than the fused kernel
        if mask is None and is_narrow and config.num_kv_heads == 1 and config.attn_softcap == 0:
            return attend_to_one_head
        capped = config.attn_backend if config.attn_softcap else None
        return Attention(mask, capped or ("eager" if is_narrow else "sdpa"), config.attn_softcap)


def _rope(tables: Tables, valid: Tensor, room: int, is_full: bool) -> Rope:
    """Cosines and sines of all places, [1 or B, S + room, 1, head_dim], for a prefix valid [B, S]."""
    cos, sin = tables.rope
    length = valid.shape[1] + room
    if is_full:
        return cos[None, :length], sin[None, :length]
    positions = positions_of(torch.cat([valid, valid.new_ones(len(valid), room)], dim=1)).clamp(min=0)
    return cos[positions], sin[positions]


def _token_mask(known: Known, tokens: int) -> Tensor:
    """Which of the suffix's tokens are known, bool [B, tokens, 1]; a state before the actions is not."""
    return F.pad(known.mask, (tokens - known.mask.shape[1], 0))[..., None]


def _sources(model: Pi0, vision: bool, matrices: bool) -> Iterator[nn.Module]:
    """The modules that tables are made of, the image encoder's and the layers' matrices where those are among them."""
    if vision:
        yield from model.vision.blocks.modules()
    for layer in (*model.prefix_layers, *model.suffix_layers):
        for name, child in layer.named_children():
            if matrices or name not in _MATRICES:
                yield from child.modules()
    yield from model.suffix_norm.modules()
    for name in ("action_in_proj", "action_time_mlp_in", "time_mlp_in", "time_mlp_out", "time_embed"):
        if hasattr(model, name):
            yield getattr(model, name)


def _tensors(modules: Sequence[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from (tensor for tensor in module._parameters.values() if tensor is not None)
        yield from (tensor for tensor in module._buffers.values() if tensor is not None)
