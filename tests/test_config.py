import json
from dataclasses import replace
from typing import Any

import pytest
from tiny_model import SWITCHES, TINY

from pi0_control.errors import ConfigError
from pi0_control.model.config import Pi0Config, SiglipConfig

PRESETS = ["pi0", "pi05", "mini"]


@pytest.mark.parametrize("preset", PRESETS)
def test_plain_values_round_trip_through_json(preset: str) -> None:
    config = Pi0Config.preset(preset)
    assert Pi0Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("preset", "prefix", "suffix"), [("pi0", 816, 51), ("pi05", 968, 50)])
def test_lengths_of_the_public_models(preset: str, prefix: int, suffix: int) -> None:
    config = Pi0Config.preset(preset)
    assert (config.prefix_len, config.suffix_len) == (prefix, suffix)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_public_architectures(preset: str) -> None:
    config = Pi0Config.preset(preset)
    assert config.is_public_architecture
    assert config.public_twin() == config


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_are_noticed_and_named(switch: dict[str, Any]) -> None:
    config = replace(TINY, **switch)
    assert not config.is_public_architecture
    assert set(config.changed_switches) <= set(switch)
    assert config.public_twin().is_public_architecture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"num_heads": 3, "num_kv_heads": 2}, "num_heads 3"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"action_width": 9}, "action_width is 9"),
        ({"attn_softcap": -1.0}, "attn_softcap is -1.0"),
        ({"attn_backend": "fast"}, r"attn_backend is 'fast'.*eager.*sdpa.*flex"),
        ({"ada_norm": "adaln"}, "ada_norm is 'adaln'"),
        ({"residual_gate": "layerscale"}, "layerscale"),
        ({"depth": 2.5}, r"depth 2.5; expected a finite number \(int\)"),
        ({"depth": "3"}, r"depth '3'; expected a finite number \(int\)"),
        ({"depth": True}, r"depth True; expected a finite number \(int\)"),
        ({"attn_softcap": float("inf")}, r"attn_softcap inf; expected a finite number \(float\)"),
        ({"vision": {}}, "expected a SiglipConfig"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 225},
        {"num_heads": 7},
        {"depth": -1},
        {"depth": 2.5},
        {"width": "16"},
        {"stem": "conv", "stem_channels": None},
        {"stem": "conv", "stem_channels": (8.0,)},
        {"stem": "conv"},
        {"stem_channels": (8,)},
        {"stem": "conv", "stem_channels": (12,)},
        {"stem": "conv", "stem_channels": (8, 16), "image_size": 36},
    ],
)
def test_image_encoders_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="vision"):
        replace(SiglipConfig(), **change)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"mini.*pi0.*pi05"):
        Pi0Config.preset("pi1")


def test_plain_values_must_be_complete_known_and_of_their_type() -> None:
    values = TINY.to_dict()
    broken: Any
    for broken in (
        [],
        None,
        {key: value for key, value in values.items() if key != "depth"},
        {**values, "layers": 3},
        {**values, "depth": "three"},
        {**values, "depth": True},
        {**values, "vision": None},
        {**values, "vision": {**values["vision"], "width": 1.5}},
    ):
        with pytest.raises(ConfigError, match="config has"):
            Pi0Config.from_dict(broken)
