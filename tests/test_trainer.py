"""The trainer's laws: it learns, it resumes as if it had not stopped, and it trains on what the policy will see."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rich
import torch
from tiny_training import MODEL, POLICY, QUICK, ROBOT, demonstrate, draw, lines, run

from pi0_control import cli
from pi0_control.errors import CheckpointError, ConfigError, DatasetError
from pi0_control.model import Pi0
from pi0_control.model.pi0 import in_model_range
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.norm_stats import RunningStats
from pi0_control.policy.policy import Pi0Policy
from pi0_control.policy.tokenizer import Tokenizer
from pi0_control.policy.transforms import PolicyTransforms
from pi0_control.robot import RobotSpec
from pi0_control.train import layout, training, v30
from pi0_control.train.batches import Draws, FrameInputs, split_episodes
from pi0_control.train.cache import decode_images
from pi0_control.train.config import TrainConfig
from pi0_control.train.dataset import Dataset
from pi0_control.train.distributed import World
from pi0_control.train.flow import FlowStage, FlowTargets, flow_losses
from pi0_control.train.grounding import GroundingHead, Learner
from pi0_control.train.run_folder import RunFolder
from pi0_control.train.trainer import learning_rate
from pi0_control.train.training import MINI_TOKENIZER, compute_norm_stats
from pi0_control.types import Observation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demonstrations") / "data"
    demonstrate(root)
    return root


@pytest.fixture(scope="module")
def parts(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory):
    """Dataset, decoded images and transforms."""
    dataset = Dataset.open(demonstrations)
    images = decode_images(dataset, ROBOT.cameras, 16, tmp_path_factory.mktemp("cache"), threads=1)
    norm_stats = compute_norm_stats(dataset, POLICY, np.arange(len(dataset)))
    return dataset, images, PolicyTransforms(POLICY, norm_stats, Tokenizer(MINI_TOKENIZER, MODEL.max_token_len))


def test_learns_to_follow_the_demonstrations(demonstrations: Path, tmp_path: Path):
    config = replace(QUICK, steps=120, batch_size=16, learning_rate=3e-3, log_every=10, state_dropout=0.0)
    policy = run(replace(config, validate_every=120, checkpoint_every=120), demonstrations, tmp_path)
    losses = [entry["flow_loss"] for entry in lines(tmp_path)]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]
    for side in (-1.0, 1.0):
        image = draw(np.array([side, -side]))
        seen = {"front": image, "wrist": image[::-1]}
        chunk = policy.infer(Observation(seen, np.array([0.1, 1.0], np.float32), "reach the red block"))
        np.testing.assert_allclose(chunk.actions[:, 0], 0.6 * side, atol=0.3)


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(QUICK, demonstrations, tmp_path / "whole")

    losses, calls = FlowStage.losses, []

    def interrupted(stage, learner, draws):
        calls.append(draws)
        if len(calls) == 6:  # two steps behind the checkpoint of step 3
            raise KeyboardInterrupt
        return losses(stage, learner, draws)

    with monkeypatch.context() as patch:
        patch.setattr(FlowStage, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(QUICK, demonstrations, tmp_path / "torn", resume=True)  # one command begins and goes on
    resumed = run(QUICK, demonstrations, tmp_path / "torn", resume=True)
    assert lines(tmp_path / "torn") == lines(tmp_path / "whole")
    assert lines(tmp_path / "torn", "validation") == lines(tmp_path / "whole", "validation")
    expected = Pi0Policy.from_pretrained(tmp_path / "whole").model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_gradients_that_are_not_finite_spare_the_last_checkpoint(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses, calls = FlowStage.losses, []

    def exploding(stage, learner, draws):
        result = losses(stage, learner, draws)
        calls.append(draws)
        if len(calls) == 6:  # a step with a checkpoint
            result["loss"].register_hook(lambda gradient: gradient * np.inf)
        return result

    monkeypatch.setattr(FlowStage, "losses", exploding)
    with pytest.raises(
        DatasetError, match=r"grad_norm is (inf|nan) at step 6 of stage 'policy'; .* with --init (.*)\.$"
    ):
        run(QUICK, demonstrations, tmp_path)
    run(replace(QUICK, steps=1), demonstrations, tmp_path / "other", policy_config=None, init=tmp_path)
    checkpoint = RunFolder(tmp_path).load()
    assert checkpoint.step == 3
    assert all(value.isfinite().all() for value in (*checkpoint.learner.values(), *checkpoint.averaged.values()))
    norms = [entry["grad_norm"] for entry in lines(tmp_path)]
    assert len(norms) == 5
    assert min(norms) > 0


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(demonstrations: Path, tmp_path: Path):
    config = replace(QUICK, steps=2)
    run(config, demonstrations, tmp_path)
    with pytest.raises(CheckpointError, match="holds a training run"):
        run(config, demonstrations, tmp_path)
    with pytest.raises(CheckpointError, match=r"other settings or data: training\.seed was 0 and is 1; resume"):
        run(replace(config, seed=1), demonstrations, tmp_path, resume=True)
    unused = ("touch the {object} block",)  # without random scenes
    run(replace(config, threads=1), demonstrations, tmp_path, resume=True, templates=unused)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        run(config, demonstrations, tmp_path, resume=True)
    shutil.copytree(tmp_path, tmp_path / "policy", ignore=shutil.ignore_patterns("checkpoint.pt", "policy"))
    with pytest.raises(CheckpointError, match="holds a policy without its run"):
        run(config, demonstrations, tmp_path / "policy", resume=True)


def test_what_cannot_be_trained_is_refused_before_anything_is_read(tmp_path: Path):
    nowhere, file, policy = tmp_path / "nowhere", tmp_path / "file", tmp_path / "policy"
    file.write_text("mine")
    policy.mkdir()
    (policy / "policy.json").write_text("{}")
    cases = [
        (CheckpointError, "holds a policy", QUICK, policy),
        (ConfigError, "file is a file", QUICK, file),
        (ConfigError, "Nothing to train", replace(QUICK, steps=0), nowhere),
        (ConfigError, "'nonsense'", replace(QUICK, device="nonsense"), nowhere),
    ]
    for error, message, config, out in cases:
        with pytest.raises(error, match=message):
            run(config, tmp_path / "no_data", out)
    assert not nowhere.exists()


def test_a_run_is_not_resumed_with_another_tokenizer_or_other_actions(demonstrations: Path, tmp_path: Path):
    data, out, tokenizer = tmp_path / "data", tmp_path / "out", tmp_path / "tokenizer.model"
    shutil.copytree(demonstrations, data)
    config = replace(QUICK, steps=1)
    run(config, data, out)
    run(config, data, out, resume=True)
    tokenizer.write_bytes(MINI_TOKENIZER.read_bytes() + b"\xe2\x12\x00")  # a field that means nothing
    with pytest.raises(CheckpointError, match=r"other settings or data: tokenizer was '"):
        run(config, data, out, resume=True, tokenizer=tokenizer)
    for file in (data / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop(["action"]).append_column("action", table["observation.state"]), file)
    with pytest.raises(CheckpointError, match=r"other settings or data: demonstrations\.actions was '"):
        run(config, data, out, resume=True)


def test_a_run_goes_on_with_the_same_data_elsewhere_but_not_with_other_words(demonstrations: Path, tmp_path: Path):
    data, out, moved = tmp_path / "job_1" / "data", tmp_path / "out", tmp_path / "job_2" / "data"
    shutil.copytree(demonstrations, data)
    config = replace(QUICK, steps=1)
    run(config, data, out)
    shutil.copytree(data, moved, copy_function=shutil.copyfile)  # with the time of now
    run(config, moved, out, resume=True)
    renamed = moved.rename(moved.with_name("other"))  # other episodes would be held out
    with pytest.raises(CheckpointError, match=r"demonstrations\.folders was \['data'\] and is \['other'\]"):
        run(config, renamed, out, resume=True)
    layout.write_tasks(data, [task.replace("red", "rad") for task in v30.read_tasks(data).values()])
    with pytest.raises(CheckpointError, match=r"other settings or data: demonstrations\.tasks was '"):
        run(config, data, out, resume=True)


def test_a_run_does_not_go_on_with_other_videos(demonstrations: Path, tmp_path: Path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(demonstrations, data)
    config = replace(QUICK, steps=1)
    run(config, data, out)
    video = next((data / "videos").rglob("*.mp4"))
    with video.open("ab") as file:
        file.write(bytes(8))
    with pytest.raises(CheckpointError, match=r"other settings or data: demonstrations\.images was '"):
        run(config, data, out, resume=True)


def test_a_kill_before_the_last_policy_was_written_is_made_good_by_resuming(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = Pi0Policy.save

    def interrupted(policy, directory):
        if policy.config.provenance["training"]["step"] == QUICK.steps:
            raise KeyboardInterrupt
        save(policy, directory)

    with monkeypatch.context() as patch:
        patch.setattr(Pi0Policy, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(QUICK, demonstrations, tmp_path)
    resumed = run(QUICK, demonstrations, tmp_path, resume=True)
    assert resumed.config.provenance["training"]["step"] == QUICK.steps
    averaged = RunFolder(tmp_path).load().averaged
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, averaged[f"policy.{name}"]), name


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    monkeypatch.setattr(sys, "argv", ["pi0", "train", "--dataset", "data", "--out", str(tmp_path)])
    for name, said in (("train_log.jsonl", False), ("checkpoint.pt", True)):
        (tmp_path / name).touch()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 130
        assert ("--resume" in capsys.readouterr().err) == said


@pytest.mark.parametrize("visible", [False, True])
def test_progress_goes_to_stderr_or_nowhere(
    demonstrations: Path, tmp_path: Path, visible: bool, capsys: pytest.CaptureFixture[str]
):
    config = replace(QUICK, steps=1)
    run(config, demonstrations, tmp_path / "out", cache_dir=tmp_path / "cache", show_progress=visible)
    printed = capsys.readouterr()
    assert not printed.out
    assert ("policy 1: flow_loss" in printed.err) == ("decoding" in printed.err) == visible
    assert visible or not printed.err
    assert not rich.get_console().quiet  # that one is for everybody


def test_the_policy_tells_where_it_comes_from(demonstrations: Path, tmp_path: Path):
    policy = run(replace(QUICK, steps=2), demonstrations, tmp_path)
    training = policy.config.provenance["training"]
    assert (training["episodes"], training["step"], training["config"]["steps"]) == (12, 2, 2)
    assert str(tmp_path) not in (tmp_path / "policy.json").read_text()


def test_training_goes_on_from_a_policy(demonstrations: Path, tmp_path: Path):
    first = run(replace(QUICK, steps=2), demonstrations, tmp_path / "first")
    gentle = replace(QUICK, steps=1, learning_rate=1e-9)
    options = {"policy_config": None, "init": tmp_path / "first", "keep_norm_stats": True}
    second = run(gentle, demonstrations, tmp_path / "second", **options)
    for name, value in second.model.state_dict().items():
        torch.testing.assert_close(value, first.model.state_dict()[name], atol=1e-6, rtol=0)


def test_training_inputs_are_those_of_the_policy(parts):
    dataset, images, transforms = parts
    indices = np.array([0, 7, 20])
    got = FrameInputs(dataset, images, transforms).get(indices, torch.device("cpu"))
    seen = [dict(zip(ROBOT.cameras, images[index], strict=True)) for index in indices]
    expected = transforms.inputs(
        [Observation(s, dataset.states[i], dataset.prompt(i)) for s, i in zip(seen, indices, strict=True)]
    )
    expected = replace(expected, images=in_model_range(expected.images))
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(got, name), value, atol=1e-6, rtol=0)


def test_training_inputs_of_prompts_with_the_state_in_them(parts):
    dataset, images, transforms = parts
    model = replace(MODEL, state_input="none", ada_norm="adarms", max_token_len=64)
    config = PolicyConfig.for_robot(ROBOT, model, prompt_format="pi05", discrete_state_input=True)
    transforms = PolicyTransforms(config, transforms.norm_stats, Tokenizer(MINI_TOKENIZER, 64))
    got = FrameInputs(dataset, images, transforms).get(np.array([3, 30]), torch.device("cpu"))
    for row, index in enumerate((3, 30)):
        observation = Observation(dict(zip(ROBOT.cameras, images[index], strict=True)), dataset.states[index], "")
        expected = transforms.inputs([replace(observation, prompt=dataset.prompt(index))])
        assert torch.equal(got.tokens[row], expected.tokens[0])


def test_statistics_are_those_of_normalised_targets(parts):
    dataset, _, transforms = parts
    chunks, is_pad = dataset.action_chunks(np.arange(len(dataset)), MODEL.action_horizon)
    targets = transforms.targets(chunks, dataset.states)[~is_pad]
    assert abs(targets[:, 0].mean()) < 1e-3
    assert targets[:, 0].std() == pytest.approx(1, abs=1e-3)
    assert not targets[:, 2].any()  # padding of the model
    assert np.abs(targets[:, 1]).max() < 1  # the gripper never moved: its spread is limited from below


def with_actions(dataset: Dataset, actions: np.ndarray) -> Dataset:
    """The dataset with other numbers in its actions, each of them repeated over joints."""
    return replace(dataset, actions=np.tile(actions.astype(np.float32)[:, None], (1, dataset.actions.shape[1])))


@pytest.mark.parametrize("share", [1e-4, 0.005, 0.01, 0.05, 0.5])
@pytest.mark.parametrize("norm", ["quantile", "z_score", "min_max"])
def test_nothing_that_is_learned_explodes(norm, share: float):
    rng, n = np.random.default_rng(0), 10_000
    seldom = np.arange(n) < share * n
    kinds = (
        np.where(seldom, 0.0, 1.0),  # a gripper
        np.where(seldom, 1e6, rng.normal(size=n)),
        np.where(seldom, -0.5, 1e-4 * rng.normal(size=n)),
        rng.standard_cauchy(n),
        np.zeros(n),
    )
    values = np.stack([scale * kind for kind in kinds for scale in (1e-4, 1.0, 1e4)], axis=-1).astype(np.float32)
    running = RunningStats(values.shape[1])
    for part in np.array_split(values, 3):
        running.update(part)
    normalised = np.abs(training._with_spread(running).normalize(values, norm))
    assert normalised.max() < 20
    assert norm != "min_max" or normalised.max() <= 1 + 1e-6


def test_a_policy_that_goes_by_the_whole_range_is_trained(demonstrations: Path, tmp_path: Path):
    policy = run(replace(QUICK, steps=1), demonstrations, tmp_path, policy_config=replace(POLICY, norm="min_max"))
    stats = policy.transforms.norm_stats.state
    assert (stats.min[0], stats.max[0]) == pytest.approx((-0.5, 0.5), abs=0.1)
    assert stats.max[1] - stats.min[1] == pytest.approx(1e-3)  # it never moved


def test_of_ordinary_data_the_quantiles_are_the_bounds(parts):
    dataset = parts[0]
    config = replace(POLICY, action_space="joint_absolute", delta_mask=(False, False))
    actions = np.random.default_rng(0).normal(size=len(dataset))
    stats = compute_norm_stats(with_actions(dataset, actions), config, np.arange(len(dataset))).actions
    chunks, is_pad = with_actions(dataset, actions).action_chunks(np.arange(len(dataset)), MODEL.action_horizon)
    expected = RunningStats(2)
    expected.update(chunks[~is_pad])
    for name in ("mean", "std", "q01", "q99"):
        np.testing.assert_array_equal(getattr(stats, name), getattr(expected.result(), name))


def test_actions_behind_the_end_do_not_count(parts):
    dataset, images, transforms = parts
    stage = FlowStage(dataset, images, transforms, QUICK)
    targets = stage.targets(np.array([5, 4, 0]), World())  # 6 frames per episode
    assert (7 * targets.action_shares).round().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert targets.positions[0, 0].tolist() == pytest.approx(dataset.objects[5, 0].tolist())


@pytest.fixture
def without_grip(demonstrations: Path, tmp_path: Path) -> Path:
    """The demonstrations with actions of the first joint alone, as LIBERO has fewer actions than states."""
    root = tmp_path / "narrow"
    shutil.copytree(demonstrations, root)
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"]["action"] |= {"shape": [1], "names": ["swing"]}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    for file in (root / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        swing = pa.array([action[0] for action in table["action"].to_pylist()], pa.float32())
        pq.write_table(table.set_column(table.column_names.index("action"), "action", swing), file)
    return root


@pytest.mark.parametrize("narrow", [False, True])
def test_joints_without_an_action_do_not_count(parts, without_grip: Path, narrow: bool):
    whole, images, transforms = parts
    config = replace(POLICY, uncommanded=("grip",))
    dataset = Dataset.open(without_grip) if narrow else whole
    norm_stats = compute_norm_stats(dataset, config, np.arange(len(dataset)))
    np.testing.assert_array_equal(norm_stats.actions.mean, transforms.norm_stats.actions.mean[:1])
    stage = FlowStage(dataset, images, PolicyTransforms(config, norm_stats, transforms.tokenizer), QUICK)
    indices = np.array([0, 7, 11])
    targets = stage.targets(indices, World())
    assert targets.joints == 1
    np.testing.assert_allclose(stage._action_error(targets.actions, indices), 0, atol=1e-6)


def test_a_dataset_without_some_actions_is_trained_on(without_grip: Path, tmp_path: Path):
    with pytest.raises(DatasetError, match="action of 1 numbers; the policy's robot has 2"):
        run(QUICK, without_grip, tmp_path / "out")
    policy = run(
        replace(QUICK, steps=1), without_grip, tmp_path / "out", policy_config=replace(POLICY, uncommanded=("grip",))
    )
    assert policy.config.commanded == (0,)
    swapped = replace(POLICY, uncommanded=("swing",), delta_mask=(False, False), action_space="joint_absolute")
    with pytest.raises(DatasetError, match=r"action of \['swing'\]; the policy's robot has \['grip'\]"):
        run(QUICK, without_grip, tmp_path / "other", policy_config=swapped)


def test_validation_does_not_depend_on_how_frames_fall_into_batches(parts, monkeypatch: pytest.MonkeyPatch):
    dataset, images, transforms = parts
    torch.manual_seed(0)
    learner = Learner(Pi0(MODEL), GroundingHead(MODEL.prefix_width, dataset.objects))
    noise = torch.zeros(1, MODEL.action_horizon, MODEL.action_dim), torch.full((1,), 0.5)
    monkeypatch.setattr(FlowStage, "_noise", lambda stage, rows, draws: [n.repeat_interleave(rows, 0) for n in noise])
    stages = (FlowStage(dataset, images, transforms, replace(QUICK, batch_size=size)) for size in (5, 18))
    one, other = (stage.validate(learner, torch.device("cpu"))["flow_loss"] for stage in stages)
    assert one == pytest.approx(other, rel=1e-5)


def test_the_loss_is_the_models_where_nothing_is_padded(parts):
    dataset, images, transforms = parts
    torch.manual_seed(0)
    learner = Learner(Pi0(MODEL), GroundingHead(MODEL.prefix_width, dataset.objects))
    inputs = FrameInputs(dataset, images, transforms).get(np.array([0, 7]), torch.device("cpu"))
    actions, noise = torch.randn(2, 2, 4, 3)
    time, unknown = torch.rand(2), torch.zeros(2, 2)
    targets = FlowTargets(MODEL.action_dim, actions, torch.ones(2, 4) / 8, torch.zeros(2, 2, 3), unknown)
    loss = flow_losses(learner, inputs, targets, noise, time, locate=False)["flow_loss"]
    torch.testing.assert_close(loss, learner.policy.loss(inputs, actions, noise, time).mean())


def test_a_masked_wrist_camera_is_black(parts):
    dataset, images, transforms = parts
    inputs = FrameInputs(dataset, images, transforms)
    config = replace(QUICK, camera_dropout=0.5)
    seen = inputs.get_augmented(np.arange(40), config, Draws(0, 0, 0, World()))
    assert seen.image_masks[:, 0].all()
    assert 5 < (~seen.image_masks[:, 1]).sum() < 35
    assert (seen.images[:, 1][~seen.image_masks[:, 1]] == -1).all()


def test_a_step_draws_the_same_numbers_whenever_it_is_run():
    first, again, other = (Draws(3, 0, step, World()).normal(4) for step in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_held_out_episodes_are_whole_and_reproducible(parts):
    dataset, _, _ = parts
    kept, held_out = split_episodes(dataset, 0.25, seed=1)
    assert sorted([*kept, *held_out]) == list(range(len(dataset)))
    assert len(held_out) == 3 * 6
    assert not set(dataset.episode_index[kept]) & set(dataset.episode_index[held_out])
    np.testing.assert_array_equal(split_episodes(dataset, 0.25, seed=1)[1], held_out)
    assert not len(split_episodes(dataset, 0.0, seed=1)[1])


def held_out(parts, fraction: float, seed: int, **folders: int) -> dict[str, set[int]]:
    """Which episodes are held out of folders with so many episodes of one frame."""
    names = [(name, index) for name, number in folders.items() for index in range(number)]
    episodes = [replace(parts[0].episodes[0], root=Path(name), index=index, length=1) for name, index in names]
    dataset = replace(parts[0], episodes=tuple(episodes), episode_index=np.arange(len(episodes)))
    kept, chosen = split_episodes(dataset, fraction, seed)
    assert sorted([*kept, *chosen]) == list(range(len(names)))
    return {name: {names[place][1] for place in chosen if names[place][0] == name} for name in folders}


@pytest.mark.parametrize("fraction", [0.02, 0.07, 0.25, 0.3, 0.6])
def test_the_share_of_held_out_episodes_is_as_asked_for(parts, fraction: float):
    for number in (17, 333):
        for seed in range(2):
            held = held_out(parts, fraction, seed, one=number, other=number)
            for chosen in held.values():
                assert abs(len(chosen) - fraction * number) <= 1
            assert held["one"] != held["other"] or number == 17
    assert held_out(parts, fraction, 0, one=333) != held_out(parts, fraction, 1, one=333)


def test_what_was_learned_is_never_held_out_later(parts):
    for seed in range(5):
        for number in (2, 3, 10, 49, 100):
            before = held_out(parts, 0.02, seed, first=number)["first"]
            assert before
            learned = set(range(number)) - before
            for more in ({"first": number + 30}, {"first": number, "corrections": 7}, {"aaa": 60, "first": number}):
                assert not held_out(parts, 0.02, seed, **more)["first"] & learned


def test_one_episode_cannot_be_held_out(parts):
    with pytest.raises(DatasetError, match="has 1 episode; expected two or more"):
        held_out(parts, 0.02, 0, only=1)


def test_the_learning_rate_rises_then_falls():
    config = TrainConfig(learning_rate=1.0, warmup_steps=10, final_learning_rate=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_wrong_options_are_named(demonstrations: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="batch_size is 0"):
        TrainConfig(batch_size=0)
    with pytest.raises(ConfigError, match="keep_norm_stats is set without init"):
        run(QUICK, demonstrations, tmp_path, keep_norm_stats=True)
    with pytest.raises(ConfigError, match="grounding_steps is 5 without grounding"):
        run(replace(QUICK, grounding_steps=5), demonstrations, tmp_path)
    with pytest.raises(ConfigError, match="both or neither"):
        run(QUICK, demonstrations, tmp_path, policy_config=None)
    arm = RobotSpec.from_yaml("arm6")
    policy = PolicyConfig.for_robot(arm, replace(MODEL, action_dim=7, num_cameras=3))
    with pytest.raises(DatasetError, match="2 numbers; the policy's robot has 7"):
        run(QUICK, demonstrations, tmp_path, policy_config=policy)
    swapped = replace(POLICY, robot=replace(ROBOT, joints=ROBOT.joints[::-1]))
    with pytest.raises(DatasetError, match=r"\['swing', 'grip'\]; the policy's robot has \['grip', 'swing'\]"):
        run(QUICK, demonstrations, tmp_path, policy_config=swapped)
    with pytest.raises(DatasetError, match=r"finite number\. .* at a lower learning rate\.$"):
        run(replace(QUICK, steps=3, learning_rate=1e30, clip_norm=1e30), demonstrations, tmp_path)


def test_the_camera_slots_follow_the_policy(demonstrations: Path, tmp_path: Path):
    """A policy may look through fewer cameras than it has slots."""
    config = replace(POLICY, cameras={"base_0_rgb": None, "left_wrist_0_rgb": "wrist"})
    dataset = Dataset.open(demonstrations)
    images = decode_images(dataset, ["wrist"], 16, tmp_path, threads=1)
    transforms = PolicyTransforms(
        config, compute_norm_stats(dataset, config, np.arange(9)), Tokenizer(MINI_TOKENIZER, 12)
    )
    got = FrameInputs(dataset, images, transforms).get(np.array([0]), torch.device("cpu"))
    assert got.image_masks.tolist() == [[False, True]]
    assert (got.images[0, 0] == -1).all()
    assert training._wrists_optional(config) is config  # its only camera is needed
