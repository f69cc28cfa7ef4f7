import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from policy_parts import ARM6, TINY, TINY05, make_policy, observe, stats

from pi0_control.errors import ConfigError, ObservationError
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import Pi0
from pi0_control.policy import (
    HoldPolicy,
    NormStats,
    Pi0Policy,
    PolicyConfig,
    PolicyTransforms,
    Tokenizer,
    VectorStats,
    policy_actions,
)
from pi0_control.policy.train_tokenizer import BUNDLED_FILE

pytestmark = pytest.mark.usefixtures("one_thread")


def test_inputs_are_in_model_space(policy: Pi0Policy) -> None:
    inputs = policy.transforms.inputs([observe(0), observe(1)])
    assert inputs.images.shape == (2, 3, 3, 16, 16)
    assert inputs.images.dtype == torch.uint8
    assert inputs.images[:, :, :, 0].eq(0).all()  # the padding above a wide image is black
    assert inputs.image_masks.all()
    assert inputs.tokens.shape == inputs.token_mask.shape == (2, 12)
    assert inputs.state[:, 7:].eq(0).all()
    np.testing.assert_allclose(inputs.state[0, :7], stats().state.normalize(observe(0).state, "z_score"), rtol=1e-6)


def test_images_that_training_did_not_round_stay_floats(policy: Pi0Policy) -> None:
    config = dataclasses.replace(policy.config, resize="lerobot_v05")
    images = make_policy(config).transforms.inputs([observe(0)]).images
    assert images.dtype == torch.float32
    assert images[:, :, :, 0].eq(-1).all()  # black as well
    assert images.abs().max() <= 1


@pytest.mark.parametrize("action_space", ["joint_delta", "joint_absolute"])
@pytest.mark.parametrize("norm", ["z_score", "quantile"])
def test_actions_invert_targets(action_space: Any, norm: str) -> None:
    transforms = make_policy(PolicyConfig.for_robot(ARM6, TINY, action_space, norm=norm)).transforms
    generator = np.random.default_rng(2)
    actions, states = generator.normal(size=(4, 6, 7)), generator.normal(size=(4, 7))
    targets = transforms.targets(actions, states)
    assert targets.shape == (4, 6, 9)
    assert targets.dtype == np.float32
    assert (targets[..., 7:] == 0).all()
    np.testing.assert_allclose(transforms.actions(targets, states), actions, atol=1e-5)


def test_deltas_are_to_the_observed_state_and_leave_the_gripper_absolute(policy: Pi0Policy) -> None:
    states = np.arange(7, dtype=np.float32)[None]
    relative = policy_actions(np.zeros((1, 6, 7)), states, policy.config)
    assert (relative[0] == [0, -1, -2, -3, -4, -5, 0]).all()
    mean = stats().actions.mean
    absolute = policy.transforms.actions(np.zeros((1, 6, 9)), states)
    np.testing.assert_allclose(absolute[0, 0], mean + np.array([0, 1, 2, 3, 4, 5, 0]), rtol=1e-5)


def test_nothing_is_clipped(policy: Pi0Policy) -> None:
    assert policy.transforms.actions(np.full((1, 6, 9), 1e3), np.zeros((1, 7))).max() > 1e3


def test_an_optional_camera_may_be_missing_and_its_slot_is_masked() -> None:
    base, left, right = ARM6.cameras
    config = PolicyConfig.for_robot(
        ARM6, TINY, cameras={"a": base, "b": left, "c": None}, optional_cameras=(left,), num_steps=2
    )
    policy = make_policy(config)
    images = observe().images
    only_base = observe(images={base: images[base]})
    assert policy.transforms.inputs([only_base]).image_masks.tolist() == [[True, False, False]]
    noise = np.ones((6, 9), np.float32)
    with_unused = policy.infer(observe(images={base: images[base], right: images[right]}), noise=noise)
    np.testing.assert_array_equal(with_unused.actions, policy.infer(only_base, noise=noise).actions)
    with pytest.raises(ObservationError, match=base):
        policy.infer(observe(images={left: images[left]}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": {"base_0_rgb": np.zeros((8, 8, 3), np.uint8)}}, r"lacks \['left_wrist_0_rgb', 'right_wrist_0_rgb'"),
        ({"images": dict.fromkeys(ARM6.cameras, np.zeros((8, 8, 3)))}, "'base_0_rgb' has dtype float64"),
        ({"images": dict.fromkeys(ARM6.cameras, np.zeros((3, 8, 8), np.uint8))}, r"shape \[3, 8, 8\]"),
        ({"state": np.zeros(6)}, r"shape \[6\]; expected \[7\]"),
        ({"state": np.array([0, 0, np.nan, 0, 0, np.inf, 0])}, r"\['elbow', 'tool'\] is not finite"),
        ({"state": ["a"] * 7}, "not a vector of numbers"),
        ({"prompt": " "}, "empty"),
        ({"prompt": "touch the red block " * 5}, "at most 12"),
    ],
)
def test_a_bad_observation_is_refused(policy: Pi0Policy, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        policy.infer(observe(**changes))


@pytest.mark.parametrize("policy_of", [lambda policy: policy, lambda policy: HoldPolicy(policy.robot)])
@pytest.mark.parametrize(
    "changes", [{"state": np.zeros(3)}, {"state": np.full(7, np.nan)}, {"prompt": np.array(["a"])}]
)
def test_check_refuses_what_must_not_be_acted_upon(policy: Pi0Policy, policy_of: Any, changes: dict[str, Any]) -> None:
    checked = policy_of(policy)
    checked.check(observe())
    with pytest.raises(ObservationError):
        checked.check(observe(**changes))


@pytest.mark.parametrize("images", [{}, None, dict.fromkeys(ARM6.cameras, np.zeros((8, 8, 3)))])
def test_check_looks_at_the_images(policy: Pi0Policy, images: Any) -> None:
    with pytest.raises(ObservationError):
        policy.check(observe(images=images))


@pytest.mark.parametrize("name", ["state", "actions"])
def test_statistics_that_do_not_fit_the_robot_are_refused(policy: Pi0Policy, name: str) -> None:
    def build(changed: VectorStats) -> PolicyTransforms:
        return PolicyTransforms(
            policy.config, dataclasses.replace(stats(), **{name: changed}), policy.transforms.tokenizer
        )

    with pytest.raises(ConfigError, match=f"{name} have 6 entries; expected at least 7"):
        build(VectorStats(np.zeros(6), np.ones(6)))
    with pytest.raises(ConfigError, match=f"{name} have q99 below q01"):
        build(VectorStats(np.zeros(7), np.ones(7), np.ones(7), np.arange(7.0)))
    build(VectorStats(np.zeros(32), np.ones(32), np.zeros(32), np.zeros(32)))


def test_parts_that_do_not_fit_are_refused(policy: Pi0Policy) -> None:
    config, tokenizer = policy.config, policy.transforms.tokenizer
    with pytest.raises(ConfigError, match="pads to 20"):
        PolicyTransforms(config, stats(), Tokenizer(BUNDLED_FILE, 20))
    small = dataclasses.replace(config, model=dataclasses.replace(TINY, vocab_size=100))
    with pytest.raises(ConfigError, match="256 pieces"):
        PolicyTransforms(small, stats(), tokenizer)
    plain = NormStats(VectorStats(np.zeros(7), np.ones(7)), VectorStats(np.zeros(7), np.ones(7)))
    with pytest.raises(ConfigError, match="q01"):
        PolicyTransforms(dataclasses.replace(config, norm="quantile"), plain, tokenizer)
    with pytest.raises(ConfigError, match="another configuration"):
        Pi0Policy(Pi0(TINY05), config, stats(), tokenizer)
    with pytest.raises(ConfigError, match="float16"):
        make_policy(config, "float16")


def test_a_model_without_a_state_token_reads_the_state_in_the_prompt() -> None:
    config = PolicyConfig.for_robot(ARM6, Pi0Config.preset("pi05"))
    assert (config.prompt_format, config.discrete_state_input, config.norm) == ("pi05", True, "quantile")
    assert PolicyConfig.for_robot(ARM6, Pi0Config.preset("pi05"), norm="z_score").norm == "z_score"
    plain = PolicyConfig.for_robot(ARM6, Pi0Config.preset("pi0"))
    assert (plain.prompt_format, plain.discrete_state_input, plain.norm) == ("pi0", False, "z_score")
