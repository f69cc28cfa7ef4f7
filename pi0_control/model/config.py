"""Sizes and switches of the model: SiglipConfig and Pi0Config, validated once when they are made."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from pi0_control.errors import ConfigError

LARGEST, MOST_LAYERS = 2**20, 1000  # sizes beyond are of a damaged file


@dataclass(frozen=True)
class SiglipConfig:
    """The image encoder.

    Attributes:
        image_size: images are square, [3, image_size, image_size].
        stem: ``patch`` is one convolution of ``patch_size``; ``conv`` is a stack of stride-2 convolutions through
            ``stem_channels`` followed by a 2x2 one to ``width``.
        depth: transformer blocks after the stem; 0 is allowed.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1152
    depth: int = 27
    num_heads: int = 16
    mlp_dim: int = 4304
    stem: Literal["patch", "conv"] = "patch"
    stem_channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse settings that do not exist or do not fit together."""
        _check_types(self, "vision")
        object.__setattr__(self, "stem_channels", tuple(self.stem_channels))
        for name in ("image_size", "patch_size", "width", "num_heads", "mlp_dim"):
            value = getattr(self, name)
            _require(0 < value <= LARGEST, f"vision.{name} is {value}; expected 1 to {LARGEST}.")
        _require(0 <= self.depth <= MOST_LAYERS, f"vision.depth is {self.depth}; expected 0 to {MOST_LAYERS}.")
        _require(
            self.width % self.num_heads == 0,
            f"vision.width {self.width} is not a multiple of vision.num_heads {self.num_heads}.",
        )
        _require(
            (self.stem == "conv") == bool(self.stem_channels),
            f"vision.stem {self.stem!r} with stem_channels {self.stem_channels}; expected channels for conv only.",
        )
        _require(
            all(channels > 0 and channels % 8 == 0 for channels in self.stem_channels),
            f"vision.stem_channels are {self.stem_channels}; expected multiples of 8 (GroupNorm has 8 groups).",
        )
        _require(
            self.image_size % self.stride == 0,
            f"vision.image_size {self.image_size} is not a multiple of the stem's stride {self.stride}.",
        )

    @property
    def stride(self) -> int:
        """Pixels per token along one side."""
        return self.patch_size if self.stem == "patch" else 2 ** (len(self.stem_channels) + 1)

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return (self.image_size // self.stride) ** 2


@dataclass(frozen=True)
class Pi0Config:
    """Sizes and switches of π0, π0.5 and ``mini``; the defaults are π0's.

    The experts are the prefix (images and text) and the suffix (state and actions); they share depth and heads.

    Attributes:
        state_input: ``token`` puts the state before the actions as one token (π0); ``none`` leaves it to the prompt.
        ada_norm: ``none`` is π0: time is concatenated to every action token; ``adarms`` is π0.5: time conditions the
            norms of the suffix; ``bounded`` conditions them by a sigmoid scale and a bias-free shift.
        residual_gate: what multiplies a suffix branch before it is added: ``from_norm`` takes the third part of adarms
            (nothing for other norms), ``layerscale`` a sigmoid of the time conditioning, ``none`` nothing.
        attn_softcap: logits become ``cap * tanh(logits / cap)``; 0 is off.
        time_embed: ``sincos`` as in the public models or frozen ``random_fourier`` features.
        value_residual: mix the first layer's suffix values into those of later layers, half and half (``mean``) or
            by a weight ``learned`` per token and head.
        attn_backend: how attention is computed, never what; with a soft cap ``sdpa`` falls back to ``eager``.
    """

    vision: SiglipConfig = field(default_factory=SiglipConfig)
    prefix_width: int = 2048
    prefix_mlp_dim: int = 16384
    action_width: int = 1024
    action_mlp_dim: int = 4096
    depth: int = 18
    num_heads: int = 8
    num_kv_heads: int = 1
    head_dim: int = 256
    vocab_size: int = 257152
    action_dim: int = 32
    action_horizon: int = 50
    max_token_len: int = 48
    num_cameras: int = 3
    state_input: Literal["token", "none"] = "token"
    ada_norm: Literal["none", "adarms", "bounded"] = "none"
    residual_gate: Literal["from_norm", "layerscale", "none"] = "from_norm"
    attn_softcap: float = 0.0
    time_embed: Literal["sincos", "random_fourier"] = "sincos"
    value_residual: Literal["none", "mean", "learned"] = "none"
    attn_backend: Literal["eager", "sdpa", "flex"] = "sdpa"

    def __post_init__(self) -> None:
        """Refuse settings that do not exist or do not fit together."""
        _check_types(self, "model")
        for entry in fields(self):
            if entry.type is int:
                value, largest = getattr(self, entry.name), MOST_LAYERS if entry.name == "depth" else LARGEST
                _require(0 < value <= largest, f"{entry.name} is {value}; expected 1 to {largest}.")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}.",
        )
        _require(self.head_dim % 2 == 0, f"head_dim is {self.head_dim}; expected an even number (RoPE).")
        _require(self.action_width % 2 == 0, f"action_width is {self.action_width}; expected an even number.")
        _require(self.attn_softcap >= 0, f"attn_softcap is {self.attn_softcap}; expected 0 (off) or above.")
        _require(
            self.residual_gate != "layerscale" or self.ada_norm != "none",
            "residual_gate 'layerscale' needs time conditioning; expected ada_norm 'adarms' or 'bounded', got 'none'.",
        )

    @property
    def prefix_len(self) -> int:
        """Tokens of all cameras and the text, padding included."""
        return self.num_cameras * self.vision.num_tokens + self.max_token_len

    @property
    def suffix_len(self) -> int:
        """Tokens of the state (if it is one) and the actions."""
        return self.action_horizon + (self.state_input == "token")

    @property
    def changed_switches(self) -> tuple[str, ...]:
        """Names of the architecture switches that no public model has and that are on here."""
        changed = {
            "attn_softcap": self.attn_softcap != 0,
            "time_embed": self.time_embed != "sincos",
            "ada_norm": self.ada_norm == "bounded",
            "residual_gate": self.residual_gate != "from_norm",
            "value_residual": self.value_residual != "none",
        }
        return tuple(name for name, is_on in changed.items() if is_on)

    @property
    def is_public_architecture(self) -> bool:
        """True if no switch is on that the public models do not have."""
        return not self.changed_switches

    def public_twin(self) -> "Pi0Config":
        """The same sizes with every such switch off: the architecture a public checkpoint was trained with."""
        return replace(
            self,
            attn_softcap=0.0,
            time_embed="sincos",
            ada_norm="none" if self.ada_norm == "none" else "adarms",
            residual_gate="from_norm",
            value_residual="none",
        )

    @classmethod
    def preset(cls, name: str) -> "Pi0Config":
        """``pi0``, ``pi05`` (the public sizes) or ``mini`` (trains and runs on two CPU cores)."""
        if name not in _PRESETS:
            raise ConfigError(f"No model preset {name!r}; available: {sorted(_PRESETS)}.")
        return cls(**_PRESETS[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :meth:`from_dict`."""
        values = asdict(self)
        values["vision"]["stem_channels"] = list(self.vision.stem_channels)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Pi0Config":
        """Build from plain values; unknown, missing or mistyped entries raise ConfigError."""
        _check_keys(cls, values, "model")
        _check_keys(SiglipConfig, values["vision"], "vision")
        return cls(**{**values, "vision": SiglipConfig(**values["vision"])})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_types(config: SiglipConfig | Pi0Config, source: str) -> None:
    """Choices among their literals, numbers that are numbers, and parts of the right type."""
    for name, hint in get_type_hints(type(config)).items():
        value, choices = getattr(config, name), get_args(hint)
        if choices and all(isinstance(choice, str) for choice in choices):
            _require(value in choices, f"{name} is {value!r}; expected one of {list(choices)}.")
        elif hint in (int, float):
            allowed = int if hint is int else int | float
            fits = isinstance(value, allowed) and not isinstance(value, bool) and math.isfinite(value)
            _require(fits, f"{source} config has {name} {value!r}; expected a finite number ({hint.__name__}).")
        elif hint is SiglipConfig:
            _require(isinstance(value, SiglipConfig), f"{source} config has {name} {value!r}; expected a SiglipConfig.")
        else:
            fits = isinstance(value, list | tuple) and all(type(entry) is int for entry in value)
            _require(fits, f"{source} config has {name} {value!r}; expected a list of whole numbers.")


def _check_keys(cls: type, values: Any, source: str) -> None:
    expected = sorted(entry.name for entry in fields(cls))
    if not isinstance(values, Mapping) or set(values) != set(expected):
        got = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise ConfigError(f"{source} config has {got}; expected exactly the keys {expected}.")


_PRESETS: dict[str, dict[str, Any]] = {
    "pi0": {},
    "pi05": {"max_token_len": 200, "state_input": "none", "ada_norm": "adarms"},
    "mini": {
        "vision": SiglipConfig(
            image_size=64, width=192, depth=0, num_heads=4, mlp_dim=384, stem="conv", stem_channels=(32, 64, 96)
        ),
        "prefix_width": 192,
        "prefix_mlp_dim": 384,
        "action_width": 128,
        "action_mlp_dim": 256,
        "depth": 4,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 48,
        "vocab_size": 256,
        "action_dim": 7,
        "action_horizon": 16,
        "max_token_len": 16,
        "attn_backend": "eager",
    },
}
