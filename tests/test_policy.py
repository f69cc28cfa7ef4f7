import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from pi0_control.errors import CheckpointError, ConfigError, ObservationError, RobotMismatchError
from pi0_control.model.config import Pi0Config, SiglipConfig
from pi0_control.model.pi0 import Pi0
from pi0_control.policy import (
    HoldPolicy,
    NormStats,
    Pi0Policy,
    PolicyConfig,
    PolicyTransforms,
    Tokenizer,
    VectorStats,
    deltas,
    resolve_device,
)
from pi0_control.policy.train_tokenizer import BUNDLED_FILE
from pi0_control.robot import RobotSpec
from pi0_control.types import Observation

ARM6 = RobotSpec.from_yaml("arm6")
VISION = SiglipConfig(image_size=16, width=16, depth=0, num_heads=2, mlp_dim=32, stem="conv", stem_channels=(8,))
TINY = Pi0Config(
    vision=VISION,
    prefix_width=16,
    prefix_mlp_dim=32,
    action_width=16,
    action_mlp_dim=32,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    vocab_size=256,
    action_dim=9,
    action_horizon=6,
    max_token_len=12,
    attn_backend="eager",
)
TINY05 = dataclasses.replace(TINY, state_input="none", ada_norm="adarms", max_token_len=120)


def stats() -> NormStats:
    def vector(offset: float) -> VectorStats:
        mean = np.linspace(-1, 1, 7) + offset
        return VectorStats(mean, np.linspace(0.1, 2, 7), mean - 1, mean + 2)

    return NormStats(vector(0.0), vector(0.25))


def make_policy(config: PolicyConfig, dtype: str = "float32") -> Pi0Policy:
    torch.manual_seed(0)
    tokenizer = Tokenizer(BUNDLED_FILE, config.model.max_token_len)
    return Pi0Policy(Pi0(config.model), config, stats(), tokenizer, dtype=dtype)


def observe(seed: int = 0, prompt: str = "touch the red block", **changes: Any) -> Observation:
    generator = np.random.default_rng(seed)
    images = {name: generator.integers(0, 256, (24, 32, 3), dtype=np.uint8) for name in ARM6.cameras}
    state = generator.uniform(-1, 1, 7).astype(np.float32)
    return dataclasses.replace(Observation(images, state, prompt, stamp_s=2.5), **changes)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def policy() -> Pi0Policy:
    return make_policy(PolicyConfig.for_robot(ARM6, TINY, num_steps=3))


@pytest.fixture(scope="module")
def saved(policy: Pi0Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policies") / "saved"
    policy.save(directory)
    return directory


# Inference


def test_a_chunk_has_the_robots_shape_time_and_costs(policy: Pi0Policy) -> None:
    chunk = policy.infer(observe())
    assert chunk.actions.shape == (6, 7)
    assert chunk.actions.dtype == np.float32
    assert (chunk.start_s, chunk.dt_s) == (2.5, 0.05)
    assert set(chunk.timing_ms) == {"preprocess", "prefix", "denoise"}
    assert all(value > 0 for value in chunk.timing_ms.values())
    assert (policy.horizon, policy.execution_horizon, policy.robot) == (6, 3, ARM6)


def test_a_seed_fixes_the_actions_and_the_noise_runs_on_without_one(policy: Pi0Policy) -> None:
    policy.reset(seed=3)
    first, second = policy.infer(observe()).actions, policy.infer(observe()).actions
    assert not np.array_equal(first, second)
    policy.reset(seed=3)
    assert np.array_equal(policy.infer(observe()).actions, first)
    policy.reset()
    assert np.array_equal(policy.infer(observe()).actions, second)


def test_a_batch_equals_its_rows_one_by_one(policy: Pi0Policy) -> None:
    prompts = ("touch the red block", "lift the blue cube off the table", "go")
    observations = [observe(seed, prompt) for seed, prompt in enumerate(prompts)]
    noise = np.random.default_rng(5).normal(size=(3, 6, 9)).astype(np.float32)
    together = policy.infer_batch(observations, noise=noise)
    for observation, row, chunk in zip(observations, noise, together, strict=True):
        alone = policy.infer(observation, noise=row)
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-5)
    assert policy.infer_batch([]) == []


def test_every_part_of_the_observation_matters(policy: Pi0Policy) -> None:
    noise = np.ones((6, 9), np.float32)
    plain = policy.infer(observe(), noise=noise).actions
    black = dict.fromkeys(ARM6.cameras, np.zeros((24, 32, 3), np.uint8))
    for other in (observe(prompt="touch the green block"), observe(images=black), observe(state=np.zeros(7))):
        assert not np.allclose(policy.infer(other, noise=noise).actions, plain, atol=1e-6)


def test_bfloat16_stays_close_to_float32(policy: Pi0Policy) -> None:
    noise = np.ones((6, 9), np.float32)
    exact = policy.infer(observe(), noise=noise).actions
    rounded = make_policy(policy.config, "bfloat16").infer(observe(), noise=noise).actions
    assert 0 < np.abs(rounded - exact).max() < 0.1


def test_the_state_in_the_prompt_reaches_pi05() -> None:
    config = PolicyConfig.for_robot(ARM6, TINY05, prompt_format="pi05", discrete_state_input=True, norm="quantile")
    transforms = make_policy(config).transforms
    inputs = transforms.inputs([observe(state=np.zeros(7, np.float32))])
    text = transforms.tokenizer.decode(inputs.tokens[0].numpy())
    expected = stats().state.normalize(np.zeros(7), "quantile")
    bins = " ".join(str(int(np.floor((value + 1) * 128))) for value in expected)
    assert f"state: {bins};" in text
    padded = dataclasses.replace(config, pad_state_in_prompt=True)
    text = make_policy(padded).transforms.tokenizer.decode(make_policy(padded).transforms.inputs([observe()]).tokens[0])
    assert text.count("128") >= 2  # the model has two more dimensions than the robot


def test_non_finite_actions_are_never_returned(policy: Pi0Policy) -> None:
    broken = make_policy(policy.config)
    with torch.no_grad():
        broken.model.action_out_proj.bias.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        broken.infer(observe())


# Transforms


def test_inputs_are_in_model_space(policy: Pi0Policy) -> None:
    inputs = policy.transforms.inputs([observe(0), observe(1)])
    assert inputs.images.shape == (2, 3, 3, 16, 16)
    assert inputs.images.dtype == torch.float32
    assert inputs.images[:, :, :, 0].eq(-1).all()  # the padding above a wide image is black
    assert inputs.images.abs().max() <= 1
    assert inputs.image_masks.all()
    assert inputs.tokens.shape == inputs.token_mask.shape == (2, 12)
    assert inputs.state[:, 7:].eq(0).all()
    np.testing.assert_allclose(inputs.state[0, :7], stats().state.normalize(observe(0).state, "z_score"), rtol=1e-6)


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
    relative = policy.transforms.deltas(np.zeros((1, 6, 7)), states)
    assert (relative[0] == [0, -1, -2, -3, -4, -5, 0]).all()
    assert np.array_equal(deltas(np.zeros((1, 6, 7)), states, policy.config.delta_mask), relative)
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


# policy.json


def test_a_model_without_a_state_token_reads_the_state_in_the_prompt() -> None:
    config = PolicyConfig.for_robot(ARM6, Pi0Config.preset("pi05"))
    assert (config.prompt_format, config.discrete_state_input, config.norm) == ("pi05", True, "quantile")
    assert PolicyConfig.for_robot(ARM6, Pi0Config.preset("pi05"), norm="z_score").norm == "z_score"
    plain = PolicyConfig.for_robot(ARM6, Pi0Config.preset("pi0"))
    assert (plain.prompt_format, plain.discrete_state_input, plain.norm) == ("pi0", False, "z_score")


def test_config_round_trip(policy: Pi0Policy, tmp_path: Path) -> None:
    config = dataclasses.replace(policy.config, provenance={"steps": 10, "data": "60 demonstrations, 4 tasks"})
    config.save(tmp_path / "policy.json")
    assert PolicyConfig.load(tmp_path / "policy.json") == config
    assert "rtc_max_delay" not in config.to_dict()  # so that policies that are not trained for it stay as they were
    config = dataclasses.replace(config, rtc_max_delay=3)
    config.save(tmp_path / "policy.json")
    assert PolicyConfig.load(tmp_path / "policy.json").rtc_max_delay == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format_version 2 is unknown; expected 1"),
        ({"format_version": None}, "format_version None"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"norm": "min_max"}, "'min_max'"),
        ({"norm_eps": 0}, "above zero"),
        ({"norm_eps": "small"}, "expected float"),
        ({"num_steps": 2.5}, "expected int"),
        ({"num_steps": 0}, "1 or more"),
        ({"rtc_max_delay": 6}, "0 to 5"),
        ({"execution_horizon": 7}, "1 to 6"),
        ({"discrete_state_input": True}, "prompt_format 'pi0'"),
        ({"discrete_state_input": 1}, "expected bool"),
        ({"pad_state_in_prompt": True}, "needs discrete_state_input"),
        ({"delta_mask": [True] * 6}, "expected 7 booleans"),
        ({"delta_mask": [False] * 7}, "joint_delta"),
        ({"delta_mask": "yes"}, "not a list"),
        ({"action_space": "joint_absolute"}, "joint_absolute"),
        ({"cameras": {"a": "base_0_rgb"}}, "num_cameras"),
        ({"cameras": {"a": "base_0_rgb", "b": None, "c": "top"}}, "expected distinct cameras"),
        ({"cameras": None}, "not an object"),
        ({"optional_cameras": ["top"]}, "optional_cameras"),
        ({"robot": {"name": "other"}}, "robot has"),
        ({"model": {}}, "expected exactly the keys"),
    ],
)
def test_a_config_is_strict(saved: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    values = json.loads((saved / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(CheckpointError, match=words):
        PolicyConfig.load(tmp_path / "policy.json")
    for key in values:
        with pytest.raises(ConfigError, match=key):
            PolicyConfig.from_dict({name: value for name, value in values.items() if name != key})


# Policy directories


def test_a_saved_policy_comes_back_the_same(policy: Pi0Policy, saved: Path) -> None:
    loaded = Pi0Policy.from_pretrained(saved, robot=ARM6)
    assert loaded.config == policy.config
    assert sorted(file.name for file in saved.iterdir()) == [
        "model.safetensors",
        "norm_stats.json",
        "policy.json",
        "tokenizer.model",
    ]
    for each in (policy, loaded):
        each.reset(seed=1)
    assert np.array_equal(loaded.infer(observe()).actions, policy.infer(observe()).actions)


@pytest.mark.parametrize("name", ["model.safetensors", "norm_stats.json", "tokenizer.model", "policy.json"])
def test_an_interrupted_save_leaves_whole_files(policy: Pi0Policy, saved: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    (copy / f"{name}.partial").mkdir()  # this file cannot be written
    with pytest.raises((OSError, SafetensorError)):
        policy.save(copy)
    assert {file: (copy / file).read_bytes() for file in before} == before
    fresh = tmp_path / "fresh"
    (fresh / f"{name}.partial").mkdir(parents=True)
    with pytest.raises((OSError, SafetensorError)):
        policy.save(fresh)
    assert not (fresh / name).exists()
    assert not (fresh / "policy.json").exists()


def damage_config(path: Path) -> None:
    (path / "policy.json").write_text('{"format_version": 1,')


def cut_weights(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


def drop_one_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    del tensors["action_out_proj.bias"]
    save_file(tensors, path / "model.safetensors")


def shorten_tokens(path: Path) -> None:
    values = json.loads((path / "policy.json").read_text())
    values["model"]["vocab_size"] = 100
    (path / "policy.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_config, r"policy\.json is not valid JSON"),
        (cut_weights, "model.safetensors"),
        (drop_one_tensor, r"action_out_proj\.bias"),
        (shorten_tokens, "do not fit together"),
        (lambda path: (path / "norm_stats.json").write_text("{}"), "expected state and actions"),
        (lambda path: (path / "tokenizer.model").write_bytes(b"no"), "tokenizer.model"),
        *((lambda path, name=name: (path / name).unlink(), name.replace(".", r"\."))
          for name in ("policy.json", "model.safetensors", "norm_stats.json", "tokenizer.model")),
    ],
)  # fmt: skip
def test_a_damaged_policy_is_refused(saved: Path, tmp_path: Path, damage: Callable[[Path], Any], words: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    damage(copy)
    with pytest.raises(CheckpointError, match=words):
        Pi0Policy.from_pretrained(copy)


def test_an_unknown_policy_names_the_bundled_ones() -> None:
    with pytest.raises(CheckpointError, match=r"No policy 'maxi'; give a policy directory or one of the bundled \["):
        Pi0Policy.from_pretrained("maxi")


def test_an_unknown_device_or_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="'abacus' cannot be used on this machine; 'cpu' can"):
        Pi0Policy.from_pretrained(saved, device="abacus")
    with pytest.raises(ConfigError, match=r"available: \['bfloat16', 'float32'\]"):
        Pi0Policy.from_pretrained(saved, dtype="int4")


def test_a_device_is_tried_out() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    absent = [name for name in ("cuda", "xpu", "mps") if not getattr(torch, name).is_available()]
    for name in (*absent, "meta", "abacus"):
        with pytest.raises(ConfigError, match=f"Torch device '{name}' cannot be used on this machine; 'cpu' can"):
            resolve_device(name)


def test_another_robot_is_refused_and_the_difference_named(saved: Path) -> None:
    values = ARM6.to_dict()
    longer = {**values, "joints": [*values["joints"], {**values["joints"][0], "name": "extra"}]}
    moved = {**values, "joints": [{**values["joints"][0], "upper": 3.1}, *values["joints"][1:]]}
    renamed = {**values, "name": "arm_x", "cameras": ["top"]}
    slower = {**values, "control_rate_hz": 10}
    for other, words in (
        (longer, r"extra \(revolute\)"),
        (moved, r"'waist' has limits \[-2\.6, 2\.6\] there and \[-2\.6, 3\.1\] here"),
        (renamed, r"'arm_x': it looks through cameras .* and the robot has \['top'\]"),
        (slower, "20 Hz and the robot at 10 Hz"),
    ):
        with pytest.raises(RobotMismatchError, match=words):
            Pi0Policy.from_pretrained(saved, robot=RobotSpec.from_dict(other))


def test_a_robot_that_differs_where_it_does_not_matter_is_driven(saved: Path) -> None:
    values = ARM6.to_dict()
    slow_joints = [{**joint, "max_velocity": 0.5} for joint in values["joints"]]
    careful = RobotSpec.from_dict({**values, "joints": slow_joints, "cameras": [*values["cameras"], "extra"]})
    assert Pi0Policy.from_pretrained(saved, robot=careful).robot == careful


# HoldPolicy


def test_hold_repeats_the_state() -> None:
    hold = HoldPolicy(ARM6, horizon=5)
    chunk = hold.infer(observe())
    assert chunk.actions.shape == (5, 7)
    assert (chunk.actions == observe().state).all()
    assert (chunk.start_s, chunk.dt_s) == (2.5, 0.05)
    assert len(hold.infer_batch([observe(), observe(1)])) == 2
    hold.reset(seed=1)


@pytest.mark.parametrize("state", [np.zeros(3), np.full(7, np.nan)])
def test_hold_refuses_a_bad_state(state: np.ndarray) -> None:
    with pytest.raises(ObservationError, match=r"expected \[7\]|not finite"):
        HoldPolicy(ARM6).infer(observe(state=state))


def test_hold_checks_its_horizon() -> None:
    with pytest.raises(ConfigError, match="expected 1 to the horizon 4"):
        HoldPolicy(ARM6, horizon=4, execution_horizon=5)
