from dataclasses import replace

import pytest
from tiny_model import SWITCHES, TINY, TINY_PI05, make_model

from pi0_control.model.config import Pi0Config
from pi0_control.model.parts import PARTS, freeze, parameters_of, part_of


@pytest.mark.parametrize("config", [TINY, TINY_PI05, *(replace(TINY, **switch) for switch in SWITCHES)])
def test_every_parameter_is_in_one_part_and_no_part_is_empty(config: Pi0Config) -> None:
    model = make_model(config)
    assert {part_of(name) for name, _ in model.named_parameters()} == set(PARTS)
    assert sum(len(list(parameters_of(model, [part]))) for part in PARTS) == len(list(model.parameters()))


def test_parts_are_what_their_names_say() -> None:
    of = {part: {n.split(".")[0] for n, _ in make_model().named_parameters() if part_of(n) == part} for part in PARTS}
    assert of["language"] == {"embedding", "prefix_layers", "prefix_norm"}
    assert of["action_expert"] == {"suffix_layers", "suffix_norm"}
    assert {"action_in_proj", "action_out_proj", "state_proj"} < of["projections"]


def test_freezing_is_of_the_part_alone() -> None:
    model = make_model()
    freeze(model, ["vision", "language"])
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"action_expert", "projections"}
    assert not any(parameter.requires_grad for parameter in parameters_of(model, ["vision", "language"]))
