"""π0 and π0.5: images, text and state -> a chunk of actions, by flow matching.

Two experts, the prefix (images and text) and the suffix (state and actions), share the attention of every layer. The
time of the flow runs from 1 (noise) to 0 (data): ``x_t = t * noise + (1 - t) * actions`` and the model predicts
``noise - actions``. Source: openpi's reading of "π0: A Vision-Language-Action Flow Model for General Robot Control".
"""

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi0_control.errors import ObservationError
from pi0_control.model.attention import (
    Attention,
    apply_rope,
    attention_mask,
    positions_of,
    rope_table,
    suffix_mask,
    with_self,
)
from pi0_control.model.config import Pi0Config, SiglipConfig
from pi0_control.model.gemma import GemmaLayer, RMSNorm, make_norm
from pi0_control.model.prefix_cache import PrefixCache
from pi0_control.model.recompute import run_layer
from pi0_control.model.siglip import Siglip
from pi0_control.model.skeleton import skeletons
from pi0_control.model.times import RandomFourierTime, SinCosTime

if TYPE_CHECKING:
    from pi0_control.model.packed import PackedBlocks

__all__ = ["ModelInputs", "Pi0", "Pi0Config", "SiglipConfig"]

Rope = tuple[Tensor, Tensor]


@dataclass
class ModelInputs:
    """The tensors of one batch, in model space.

    Images may have fewer rows than the rest: each then serves that many consecutive rows and is encoded once.

    Attributes:
        images: [B, cameras, 3, S, S], uint8, or float32 in [-1, 1].
        image_masks: bool [B, cameras], False where a camera is missing.
        tokens: int64 [B, T].
        token_mask: bool [B, T], False for padding.
        state: float32 [B, action_dim], normalised and padded with zeros.
    """

    images: Tensor
    image_masks: Tensor
    tokens: Tensor
    token_mask: Tensor
    state: Tensor

    @property
    def batch_size(self) -> int:
        """Number of rows B."""
        return self.tokens.shape[0]

    @property
    def prompts_per_image(self) -> int:
        """Consecutive rows that share one row of images, usually 1."""
        return self.tokens.shape[0] // self.images.shape[0]

    @property
    def is_full(self) -> bool:
        """Whether no camera is masked and no text is padding; asks the device, so ask on the CPU."""
        return bool(self.image_masks.all()) and bool(self.token_mask.all())

    def trimmed(self, multiple: int = 1) -> "ModelInputs":
        """Without the cameras that are masked and the text that is padding in every row; for use on the CPU.

        Positions count valid tokens only, so nothing else changes. One camera and one token stay in any case.

        Args:
            multiple: the length of the text is rounded up to it, as far as there is text.
        """
        cameras, texts = self.image_masks.any(dim=0), self.token_mask.any(dim=0)
        cameras[0] |= ~cameras.any()
        used = int(texts.nonzero().amax()) + 1 if bool(texts.any()) else 1
        length = min(-(-used // multiple) * multiple, len(texts))
        if bool(cameras.all()) and length == len(texts):
            return self
        return replace(
            self,
            images=self.images[:, cameras],
            image_masks=self.image_masks[:, cameras],
            tokens=self.tokens[:, :length],
            token_mask=self.token_mask[:, :length],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "ModelInputs":
        """The same batch on another device; ``dtype`` applies to state and images only, and not to those in bytes."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        if dtype is not None:
            for name in ("images", "state"):
                moved[name] = moved[name].to(dtype if moved[name].is_floating_point() else None)
        return ModelInputs(**moved)


def in_model_range(images: Tensor) -> Tensor:
    """Bytes 0..255 to float32 -1..1, any shape; images that are floats stay as they are."""
    return images if images.is_floating_point() else images.float().div_(127.5).sub_(1.0)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x.to(layer.weight.dtype))


class Pi0(nn.Module):
    """The policy network.

    ``velocity`` is the plain reading: prefix and suffix in one forward. ``encode_prefix`` followed by any number of
    ``denoise_step`` computes the same numbers with the prefix encoded once.

    The time of the flow is one number per row [B] or one per action [B, horizon], where 0 marks an action that is
    already known.
    """

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        width, action_width = config.prefix_width, config.action_width
        self.vision = Siglip(config.vision, width, config.attn_backend)
        self.embedding = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        prefix_layers = nn.ModuleList(GemmaLayer(config, suffix=False) for _ in range(config.depth))
        suffix_layers = nn.ModuleList(GemmaLayer(config, suffix=True, first=i == 0) for i in range(config.depth))
        self.prefix_layers = cast("list[GemmaLayer]", prefix_layers)
        self.suffix_layers = cast("list[GemmaLayer]", suffix_layers)
        self.prefix_norm, self.suffix_norm = RMSNorm(width), make_norm(config.ada_norm, action_width)
        self.action_in_proj = nn.Linear(config.action_dim, action_width)
        self.action_out_proj = nn.Linear(action_width, config.action_dim)
        if config.state_input == "token":
            self.state_proj = nn.Linear(config.action_dim, action_width)
        if config.ada_norm == "none":
            self.action_time_mlp_in = nn.Linear(2 * action_width, action_width)
            self.action_time_mlp_out = nn.Linear(action_width, action_width)
        else:
            self.time_mlp_in = nn.Linear(action_width, action_width)
            self.time_mlp_out = nn.Linear(action_width, action_width)
        self.time_embed = (SinCosTime if config.time_embed == "sincos" else RandomFourierTime)(action_width)

    def checkpoint_gradients(self) -> "Pi0":
        """From now on compute the activations of each layer again in the backward pass instead of keeping them."""
        self.gradient_checkpointing = self.vision.gradient_checkpointing = True
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the experts' matrices, in which the residual streams run."""
        return self.embedding.weight.dtype

    @classmethod
    def empty(cls, config: Pi0Config, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> "Pi0":
        """With weights of no particular value, as :meth:`cast` to ``dtype``, for those who load all of them."""
        with skeletons():
            model = cls(config)
        return model.cast(dtype).to_empty(device=device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def cast(self, dtype: torch.dtype) -> "Pi0":
        """Cast the bulk of the weights in place; norms, stem, positions and the action projections stay float32.

        More exact than ``to(dtype)`` at nearly the same size and speed.
        """
        bulk: list[nn.Module] = [self.vision.blocks, self.vision.norm, self.vision.head, self.embedding]
        for layer in (*self.prefix_layers, *self.suffix_layers):
            names = ("qkv", "out", "gate_up", "down", "value_mix")
            bulk += [getattr(layer, name) for name in names if hasattr(layer, name)]
        cast_down = {id(parameter) for module in bulk for parameter in module.parameters()}
        for tensor in (*self.parameters(), *self.buffers()):  # one by one: no float32 copy of the whole on the way
            tensor.data = tensor.data.to(dtype if id(tensor) in cast_down else torch.float32)
        return self

    def embed_prefix(
        self, inputs: ModelInputs, is_trimmed: bool = False, vision: "PackedBlocks | None" = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (all cameras in one call of the encoder) and text as tokens.

        Args:
            inputs: the batch.
            is_trimmed: it may have fewer cameras than the config, see :meth:`ModelInputs.trimmed`.
            vision: instead of the image encoder's own blocks.

        Returns:
            tokens [B, S, prefix_width], valid bool [B, S], ar int64 [S] (all zero: everybody sees everybody).

        Raises:
            ObservationError: the images do not have the shape of the config, or not a fitting number of rows.
        """
        self._check_shapes(inputs, is_trimmed)
        image_tokens = self.vision(in_model_range(inputs.images.flatten(0, 1)), vision)
        image_tokens = image_tokens.unflatten(0, inputs.images.shape[:2]).flatten(1, 2)
        image_valid = inputs.image_masks.repeat_interleave(self.config.vision.num_tokens, dim=1)
        prompts = inputs.prompts_per_image
        if prompts > 1:
            image_tokens = image_tokens.repeat_interleave(prompts, dim=0)
            image_valid = image_valid.repeat_interleave(prompts, dim=0)
        text_tokens = self.embedding(inputs.tokens) * math.sqrt(self.config.prefix_width)
        tokens = torch.cat([image_tokens, text_tokens.to(image_tokens.dtype)], dim=1)
        valid = torch.cat([image_valid, inputs.token_mask], dim=1)
        return tokens, valid, torch.zeros(valid.shape[1], dtype=torch.long, device=valid.device)

    def embed_suffix(self, state: Tensor, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """State (if it is a token) and noisy actions as tokens.

        Args:
            state: [B, action_dim].
            x_t: [B, horizon, action_dim].
            time: [B] or [B, horizon], 1 noise .. 0 data.

        Returns:
            tokens [B, T, action_width], valid bool [B, T], ar int64 [T], time conditioning [B, action_width], or
            [B, T, action_width] for a time per action, or None.
        """
        embedded = self.time_embed(time)
        actions = _linear(self.action_in_proj, x_t)
        cond = None
        if self.config.ada_norm == "none":
            per_action = embedded if time.dim() == 2 else embedded[:, None].expand(-1, actions.shape[1], -1)
            hidden = torch.cat([actions, per_action.to(actions.dtype)], dim=-1)
            hidden = F.silu(_linear(self.action_time_mlp_in, hidden))
            actions = _linear(self.action_time_mlp_out, hidden)
        else:
            if time.dim() == 2 and self.config.state_input == "token":  # the state goes with the actions to be found
                embedded = torch.cat([embedded[:, -1:], embedded], dim=1)
            cond = F.silu(_linear(self.time_mlp_out, F.silu(_linear(self.time_mlp_in, embedded))))
        if self.config.state_input == "token":
            actions = torch.cat([_linear(self.state_proj, state)[:, None], actions], dim=1)
        valid = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device)
        return actions, valid, self.suffix_ar(), cond

    def suffix_ar(self) -> Tensor:
        """Block starts of the suffix, int64 [T]: the state is a block of its own, then all actions are one."""
        ar = torch.zeros(self.config.suffix_len, dtype=torch.long, device=self.device)
        ar[: 2 if self.config.state_input == "token" else 1] = 1
        return ar

    def encode_prefix(self, inputs: ModelInputs, with_hidden: bool = True) -> PrefixCache:
        """Run the prefix once; differentiable.

        Args:
            inputs: the batch; its state is not used.
            with_hidden: also compute ``cache.hidden``; without it the last layer stops at its keys and values.
        """
        x, valid, ar = self.embed_prefix(inputs)
        attention = self._attention(with_self(attention_mask(valid, ar)))
        rope = rope_table(positions_of(valid), self.config.head_dim)
        x = x.to(self.dtype)
        encoded: list[tuple[Tensor, Tensor]] = []

        def run(layer: GemmaLayer, x: Tensor, finish: bool) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v, gate = layer.queries_keys_values(x, None, None)
            k = apply_rope(k, rope)
            return layer.finish(x, attention(apply_rope(q, rope), k, v), gate, None) if finish else x, k, v

        for index, layer in enumerate(self.prefix_layers):
            finish = with_hidden or index + 1 < self.config.depth
            x, k, v = run_layer(self.gradient_checkpointing, run, layer, x, finish)
            encoded.append((k, v))
        hidden = self.prefix_norm(x)[0] if with_hidden else None
        return PrefixCache(tuple(encoded), valid, hidden)

    def suffix_context(self, cache: PrefixCache) -> tuple[Attention, Rope]:
        """Attention and rotary angles of the suffix behind this prefix; the same for every denoising step."""
        ar = self.suffix_ar()
        attention = self._attention(suffix_mask(cache.valid, ar))
        start = cache.valid.sum(dim=1, keepdim=True)
        positions = start + torch.arange(ar.shape[0], device=start.device)
        return attention, rope_table(positions, self.config.head_dim)

    def denoise_step(
        self,
        state: Tensor,
        cache: PrefixCache,
        x_t: Tensor,
        time: Tensor,
        context: tuple[Attention, Rope] | None = None,
    ) -> Tensor:
        """Velocity at (x_t, time) against an encoded prefix; differentiable unless the cache is a StaticCache.

        Args:
            state: [B, action_dim].
            cache: from :meth:`encode_prefix`, with B rows.
            x_t: [B, horizon, action_dim].
            time: [B] or [B, horizon], 1 noise .. 0 data.
            context: from :meth:`suffix_context`, to compute it once for many steps.

        Returns:
            float32 [B, horizon, action_dim], an estimate of ``noise - actions``.
        """
        attention, rope = self.suffix_context(cache) if context is None else context
        x, _, _, cond = self.embed_suffix(state, x_t, time)
        x = x.to(self.dtype)
        first_values: Tensor | None = None

        def run(index: int, x: Tensor, first_values: Tensor | None) -> tuple[Tensor, Tensor]:
            layer = self.suffix_layers[index]
            q, k, v, gate = layer.queries_keys_values(x, cond, first_values)
            attended = cache.attend(index, attention, apply_rope(q, rope), apply_rope(k, rope), v)
            return layer.finish(x, attended, gate, cond), v

        for index in range(self.config.depth):
            x, values = run_layer(self.gradient_checkpointing, run, index, x, first_values)
            first_values = values if first_values is None else first_values
        return self._read_out(x, cond)

    def velocity(self, inputs: ModelInputs, x_t: Tensor, time: Tensor) -> Tensor:
        """The same as :meth:`denoise_step` in one joint forward without a cache: the reference to test against."""
        prefix, prefix_valid, prefix_ar = self.embed_prefix(inputs)
        suffix, suffix_valid, suffix_ar, cond = self.embed_suffix(inputs.state, x_t, time)
        valid = torch.cat([prefix_valid, suffix_valid], dim=1)
        attention = self._attention(with_self(attention_mask(valid, torch.cat([prefix_ar, suffix_ar]))))
        rope = rope_table(positions_of(valid), self.config.head_dim)
        prefix, suffix = prefix.to(self.dtype), suffix.to(self.dtype)
        lengths = [prefix.shape[1], suffix.shape[1]]
        first_values: Tensor | None = None
        for prefix_layer, suffix_layer in zip(self.prefix_layers, self.suffix_layers, strict=True):
            *prefix_qkv, prefix_gate = prefix_layer.queries_keys_values(prefix, None, None)
            *suffix_qkv, suffix_gate = suffix_layer.queries_keys_values(suffix, cond, first_values)
            first_values = suffix_qkv[2] if first_values is None else first_values
            q, k, v = (torch.cat(pair, dim=1) for pair in zip(prefix_qkv, suffix_qkv, strict=True))
            attended = attention(apply_rope(q, rope), apply_rope(k, rope), v)
            prefix_attended, suffix_attended = attended.split(lengths, dim=1)
            prefix = prefix_layer.finish(prefix, prefix_attended, prefix_gate, None)
            suffix = suffix_layer.finish(suffix, suffix_attended, suffix_gate, cond)
        return self._read_out(suffix, cond)

    def loss(self, inputs: ModelInputs, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Squared error of the predicted velocity, not reduced.

        Args:
            inputs: the batch.
            actions: normalised targets [B, horizon, action_dim].
            noise: standard normal, same shape.
            time: [B] or [B, horizon], see :func:`sample_time`.

        Returns:
            float32 [B, horizon, action_dim]; its mean is the training loss.
        """
        return self.flow_error(self.encode_prefix(inputs, with_hidden=False), inputs.state, actions, noise, time)

    def flow_error(self, cache: PrefixCache, state: Tensor, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """As :meth:`loss`, against an encoded prefix with as many rows as the state [B, action_dim]."""
        t = time[:, None, None] if time.dim() == 1 else time[..., None]
        x_t = t * noise + (1 - t) * actions
        velocity = self.denoise_step(state, cache, x_t, time)
        return (velocity - (noise - actions)).square()

    def _attention(self, mask: Tensor) -> Attention:
        return Attention(mask, self.config.attn_backend, self.config.attn_softcap)

    def _read_out(self, suffix: Tensor, cond: Tensor | None) -> Tensor:
        hidden, _ = self.suffix_norm(suffix, cond)  # adarms' last gate is not used
        return _linear(self.action_out_proj, hidden[:, -self.config.action_horizon :]).float()

    def _check_shapes(self, inputs: ModelInputs, is_trimmed: bool) -> None:
        images, rows = inputs.images, inputs.batch_size
        size = self.config.vision.image_size
        cameras = inputs.image_masks.shape[1] if is_trimmed else self.config.num_cameras
        expected = (cameras, 3, size, size)
        if images.dim() != 5 or tuple(images.shape[1:]) != expected:
            raise ObservationError(
                f"Images have shape {list(images.shape)}; expected [batch, cameras, 3, height, width] with "
                f"{list(expected)} after the batch."
            )
        if rows % images.shape[0]:
            raise ObservationError(f"{rows} prompts do not divide evenly among {images.shape[0]} rows of images.")
