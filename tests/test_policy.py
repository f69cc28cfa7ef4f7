import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy_parts import ARM6, TINY05, make_policy, observe, stats
from safetensors import SafetensorError
from torch import nn

from pi0_control.errors import CheckpointError, ConfigError, ObservationError, RobotMismatchError
from pi0_control.policy import (
    HoldPolicy,
    Pi0Policy,
    PolicyConfig,
    resolve_device,
)
from pi0_control.robot import RobotSpec

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products")
@pytest.mark.parametrize(("dtype", "is_packed"), [("float32", False), ("bfloat16", True)])
def test_a_cpu_multiplies_packed_matrices_in_bfloat16(policy: Pi0Policy, dtype: str, is_packed: bool) -> None:
    layers = make_policy(policy.config, dtype)._sample.tables.layers
    assert {isinstance(kernels.qkv, nn.Linear) for kernels in layers.suffix_kernels} == {not is_packed}
    assert layers.in_parts == is_packed


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


def fewer_statistics(path: Path) -> None:
    part = {"mean": [0, 0], "std": [1, 1]}
    (path / "norm_stats.json").write_text(json.dumps({"norm_stats": {"state": part, "actions": part}}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_config, r"policy\.json is not valid JSON"),
        (cut_weights, "model.safetensors"),
        (drop_one_tensor, r"action_out_proj\.bias"),
        (shorten_tokens, r"embedding\.weight"),
        (fewer_statistics, "do not fit together: The statistics of state have 2"),
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
    with pytest.raises(ConfigError, match=r"available: \['bfloat16', 'float32', 'float8'\]"):
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
