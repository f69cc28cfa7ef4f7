"""What can be switched on in a training: frozen parts, LoRA, less memory, real-time chunking, augmentation."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from public_policies import PI0, openpi_policy
from tiny_model import make_inputs
from tiny_training import MODEL, POLICY, QUICK, ROBOT, demonstrate, draw, lines, run

from pi0_control.errors import CheckpointError, ConfigError, DatasetError
from pi0_control.model import Pi0
from pi0_control.model.parts import PARTS, part_of
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.policy import Pi0Policy
from pi0_control.policy.pretrained import read_policy
from pi0_control.train.batches import Draws, FrameImages, wrist_cameras
from pi0_control.train.config import Part, TrainConfig
from pi0_control.train.distributed import World
from pi0_control.train.flow import FlowStage, FlowTargets, flow_losses
from pi0_control.train.grounding import GroundingHead, Learner
from pi0_control.train.run_folder import RunFolder
from pi0_control.train.trainer import update_average
from pi0_control.train.training import _wrists_optional
from pi0_control.train.writer import DatasetWriter
from pi0_control.types import Observation

pytestmark = pytest.mark.usefixtures("one_thread")

FEATURES: dict[str, Any] = {
    "freeze": ("vision",),
    "lora": ("language", "action_expert"),
    "lora_rank": 2,
    "gradient_checkpointing": True,
    "rtc_max_delay": 2,
    "crop": 0.8,
    "rotation_deg": 5.0,
    "saturation_jitter": 0.3,
    "camera_dropout": 0.3,
    "bf16": True,
}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demonstrations") / "data"
    demonstrate(root)
    return root


@pytest.fixture(scope="module")
def start(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy to fine-tune."""
    out = tmp_path_factory.mktemp("start")
    run(replace(QUICK, steps=1), demonstrations, out)
    return out


def test_actions_that_are_distances_are_refused(tmp_path: Path) -> None:
    """Before anything is written: a policy would learn the distance to the state once more."""
    with DatasetWriter(tmp_path / "data", ROBOT, (), (32, 32)) as recorder:
        for episode in range(3):
            for step in range(20):
                seen, told = (np.array([np.sin(t / 9 + episode), 0.5 + 0.5 * np.sin(t / 7)]) for t in (step, step + 1))
                recorder.add_frame({"front": draw([0, 1]), "wrist": draw([0, 1])}, seen, told - seen)
            recorder.save_episode("swing")
    with pytest.raises(DatasetError, match=r"data: actions are distances: actions swing, grip: .* absolute targets"):
        run(QUICK, tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out" / "policy.json").exists()


def weights(policy: Path) -> dict[str, torch.Tensor]:
    return Pi0Policy.from_pretrained(policy).model.state_dict()


def test_with_everything_on_a_resumed_run_is_an_uninterrupted_one(
    demonstrations: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(QUICK, steps=5, **FEATURES)
    options = {"policy_config": None, "init": start}
    run(config, demonstrations, tmp_path / "whole", **options)
    losses, calls = FlowStage.losses, []

    def interrupted(stage: FlowStage, learner: Learner, draws: Draws) -> dict[str, torch.Tensor]:
        calls.append(draws)
        if len(calls) == 5:  # a step behind the checkpoint of step 3
            raise KeyboardInterrupt
        return losses(stage, learner, draws)

    with monkeypatch.context() as patch:
        patch.setattr(FlowStage, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, demonstrations, tmp_path / "torn", **options)
    policy = run(config, demonstrations, tmp_path / "torn", resume=True, **options)
    for kind in ("loss", "validation"):
        assert lines(tmp_path / "torn", kind) == lines(tmp_path / "whole", kind)
    assert policy.config.rtc_max_delay == 2
    assert policy.config.optional_cameras == ("wrist",)
    policy.infer(Observation({"front": draw(np.ones(2))}, np.zeros(2, np.float32), "reach the red block"))
    assert Pi0Policy.from_pretrained(start).config.optional_cameras == ()
    before, after = weights(start), weights(tmp_path / "whole")
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, after[name]), name
        assert part_of(name) != "vision" or torch.equal(value, before[name]), name
    assert not torch.equal(after["suffix_layers.0.qkv.weight"], before["suffix_layers.0.qkv.weight"])


def test_a_base_model_learns_with_the_statistics_of_the_demonstrations(demonstrations: Path, tmp_path: Path) -> None:
    base = openpi_policy(tmp_path / "base", PI0, {})
    settings = {
        "robot": ROBOT.to_dict(),
        "cameras": {"base_0_rgb": "front"},
        "action_space": "joint_delta",
        "model": {"action_horizon": 4},
    }
    options = {"policy_config": None, "init": base, "init_known": {"policy_config": settings}}
    config = replace(QUICK, steps=1, batch_size=2, freeze=("vision",))
    with pytest.raises(CheckpointError, match="has no statistics"):
        run(config, demonstrations, tmp_path / "kept", keep_norm_stats=True, **options)
    policy = run(config, demonstrations, tmp_path / "out", **options)
    assert policy.robot == ROBOT
    assert len(policy.transforms.norm_stats.actions.mean) == len(ROBOT.joints)
    before = read_policy(base, settings).checkpoint.state()
    assert torch.equal(policy.model.state_dict()["vision.stem.weight"], before["vision.stem.weight"])
    with pytest.raises(ConfigError, match=r"Got \['policy_config'\] without init"):
        run(QUICK, demonstrations, tmp_path / "new", init_known={"policy_config": settings})


@pytest.mark.parametrize("frozen", [PARTS[:2], PARTS[2:]])
def test_frozen_parts_stay_as_they_are(
    demonstrations: Path, start: Path, tmp_path: Path, frozen: tuple[Part, ...]
) -> None:
    config = replace(QUICK, steps=2, freeze=frozen, weight_decay=0.5)
    run(config, demonstrations, tmp_path, policy_config=None, init=start)
    before, after = weights(start), weights(tmp_path)
    for name, value in after.items():
        assert torch.equal(value, before[name]) == (part_of(name) in frozen), name
    state = RunFolder(tmp_path).load().optimizer["state"]
    names = [name for name, parameter in Pi0(MODEL).named_parameters() if part_of(name) in frozen]
    assert len(state) == len(after) + 5 - len(names)  # the grounding head has five tensors that learn


def test_gradient_checkpointing_changes_no_number(demonstrations: Path, start: Path, tmp_path: Path) -> None:
    for name, config in (("plain", QUICK), ("lean", replace(QUICK, gradient_checkpointing=True))):
        run(replace(config, steps=2), demonstrations, tmp_path / name)
    for plain, lean in zip(lines(tmp_path / "plain"), lines(tmp_path / "lean"), strict=True):
        assert lean["loss"] == pytest.approx(plain["loss"], abs=1e-6)


def learner() -> Learner:
    torch.manual_seed(0)
    return Learner(Pi0(MODEL), GroundingHead(MODEL.prefix_width, np.zeros((0, 3), np.float32)))


def flow_batch(rows: int = 3) -> tuple[Any, FlowTargets, torch.Tensor]:
    """Inputs, targets and noise of two draws per row; the last chunk is one action short."""
    torch.manual_seed(1)
    real = torch.ones(rows, MODEL.action_horizon)
    real[-1, -1] = 0
    actions = torch.randn(rows, MODEL.action_horizon, MODEL.action_dim)
    targets = FlowTargets(2, actions, real / real.sum(), torch.zeros(rows, 2, 3), torch.zeros(rows, 2))
    return make_inputs(MODEL, rows), targets, torch.randn(2 * rows, MODEL.action_horizon, MODEL.action_dim)


def test_several_draws_count_like_trainings_with_one_each() -> None:
    inputs, targets, noise = flow_batch()
    time = torch.rand(6)
    whole = flow_losses(learner(), inputs, targets, noise, time, False)["flow_loss"]
    parts = [flow_losses(learner(), inputs, targets, noise[k::2], time[k::2], False)["flow_loss"] for k in (0, 1)]
    torch.testing.assert_close(whole, (parts[0] + parts[1]) / 2, atol=1e-5, rtol=0)


def test_nothing_known_is_the_loss_without_real_time_chunking() -> None:
    (inputs, targets, noise), time = flow_batch(), torch.rand(6)
    each = time[:, None].expand(-1, MODEL.action_horizon)
    expected, got = (flow_losses(learner(), inputs, targets, noise, t, False)["flow_loss"] for t in (time, each))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_known_actions_are_not_learned_but_continued() -> None:
    inputs, targets, noise = flow_batch()
    time = torch.rand(6)[:, None].repeat(1, MODEL.action_horizon)
    time[:, :2] = 0

    def loss(noise: torch.Tensor) -> torch.Tensor:
        return flow_losses(learner(), inputs, targets, noise, time, False)["flow_loss"]

    noise.requires_grad_()
    expected = loss(noise)
    expected.backward()
    assert noise.grad is not None
    assert not noise.grad[:, :2].any()  # neither asked for nor seen
    assert noise.grad[:, 2:-1].all()
    seen = torch.cat([targets.actions[:, :2] + 1, targets.actions[:, 2:]], dim=1)
    targets = replace(targets, actions=seen)
    assert not torch.allclose(loss(noise), expected, atol=1e-4)


def test_as_many_actions_are_known_as_asked_for(demonstrations: Path, tmp_path: Path, monkeypatch: Any) -> None:
    times: list[torch.Tensor] = []
    error = Pi0.flow_error

    def spy(model: Pi0, cache: Any, state: Any, actions: Any, noise: Any, time: torch.Tensor) -> torch.Tensor:
        times.append(time)
        return error(model, cache, state, actions, noise, time)

    monkeypatch.setattr(Pi0, "flow_error", spy)
    run(replace(QUICK, steps=4, rtc_max_delay=2, validation_fraction=0.0), demonstrations, tmp_path)
    known = (torch.cat(times) == 0).sum(1)
    assert set(known.tolist()) == {0, 1, 2}
    assert all(not (row[1:] == 0)[row[:-1] > 0].any() for row in torch.cat(times))  # they are the first ones
    with pytest.raises(ConfigError, match="rtc_max_delay is 4; expected 0 to 3"):
        run(replace(QUICK, rtc_max_delay=4), demonstrations, tmp_path / "new")


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 2, 16, 16, 3), np.uint8)


def augmented(pixels: np.ndarray = PIXELS, **changes: float) -> torch.Tensor:
    """Images [B, cameras, 3, S, S] after these changes alone."""
    off = {"brightness_jitter": 0.0, "contrast_jitter": 0.0}
    images = FrameImages(pixels, POLICY)
    seen, masks = images.get(np.arange(len(pixels)), torch.device("cpu"))
    images.augment(seen, masks, TrainConfig(**{**off, **changes}), Draws(0, 0, 0, World()))
    return seen


@pytest.mark.parametrize("changes", [{"crop": 0.95}, {"rotation_deg": 5.0}])
def test_wrist_cameras_are_not_turned_or_cropped(changes: dict[str, float]) -> None:
    plain, seen = augmented(), augmented(**changes)
    assert torch.equal(seen[:, 1], plain[:, 1])
    assert not torch.allclose(seen[:, 0], plain[:, 0], atol=0.1)
    assert torch.equal(seen, augmented(**changes))


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [
        (("wrist", "front"), ("wrist",)),
        (("front", "side", "Wrist_left"), ("Wrist_left",)),
        (("hand_right", "top", "hand_left"), ("hand_right", "hand_left")),
        (("top", "left", "right"), ("left", "right")),
        (("top",), ()),
    ],
)
def test_wrist_cameras_are_those_that_say_so(cameras: tuple[str, ...], expected: tuple[str, ...]) -> None:
    config = PolicyConfig.for_robot(replace(ROBOT, cameras=cameras), replace(MODEL, num_cameras=len(cameras)))
    assert wrist_cameras(config) == expected
    if expected:
        assert set(_wrists_optional(config).optional_cameras) == set(expected)
    else:
        with pytest.raises(ConfigError, match=r"the policy has none; it looks through \['top'\]"):
            _wrists_optional(config)


@pytest.mark.parametrize("name", ["brightness_jitter", "contrast_jitter", "saturation_jitter", "crop", "rotation_deg"])
def test_every_image_is_changed_on_its_own(name: str) -> None:
    same = np.tile(np.random.default_rng(0).integers(60, 200, (1, 1, 16, 16, 3), np.uint8), (3, 2, 1, 1, 1))
    seen = augmented(same, **{name: {"crop": 0.9, "rotation_deg": 5.0}.get(name, 0.1)})
    images = seen.flatten(0, 1) if "jitter" in name else seen[:, 0]
    assert len(images.flatten(1).unique(dim=0)) == len(images)


def test_one_camera_goes_by_another_name(demonstrations: Path, tmp_path: Path) -> None:
    robot = replace(ROBOT, cameras=("top", "wrist"))
    config = replace(POLICY, robot=robot, cameras={"base_0_rgb": "top", "left_wrist_0_rgb": "wrist"})
    options: dict[str, Any] = {"policy_config": config}
    quick = replace(QUICK, steps=1)
    with pytest.raises(DatasetError, match=r"no camera 'top'; it has \['front', 'wrist'\], and --cameras top NAME"):
        run(quick, demonstrations, tmp_path, **options)
    with pytest.raises(ConfigError, match="through a camera 'side'"):
        run(quick, demonstrations, tmp_path, **options, camera_names={"side": "front"})
    policy = run(quick, demonstrations, tmp_path, **options, camera_names={"top": "front"})
    assert policy.config.robot.cameras == ("top", "wrist")
    assert {*policy.config.camera_stats} == {"top", "wrist"}


def test_gradients_are_clipped(start: Path) -> None:
    states = RunFolder(start).load().optimizer["state"].values()  # of one step
    means = torch.stack([state["exp_avg"].norm() for state in states])
    assert float(means.norm()) / (1 - QUICK.betas[0]) == pytest.approx(QUICK.clip_norm, rel=1e-3)


def test_wrong_parts_are_named() -> None:
    assert get_args(Part) == PARTS
    cases: list[tuple[str, dict[str, Any]]] = [
        (r"freeze has 'eyes'; expected some of \['vision', 'language', 'action_expert'", {"freeze": ("eyes",)}),
        (r"lora has 'projections'; expected some of \['vision'", {"lora": ("projections",)}),
        ("'vision' is both", {"freeze": ("vision",), "lora": ("vision",)}),
        ("expected one to be left", {"freeze": PARTS}),
        ("crop is 1.1", {"crop": 1.1}),
        ("lora_rank is 0", {"lora_rank": 0}),
        ("lora_rank is 4 without lora", {"lora_rank": 4}),
        (r"lora_alpha is 32\.0 without lora", {"lora_alpha": 32.0}),
    ]
    for message, changes in cases:
        with pytest.raises(ConfigError, match=message):
            TrainConfig(**changes)


def test_averaged_weights_follow_slowly_and_faster_at_the_start() -> None:
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for step, decay in ((0, 1 / 20), (1000, 0.9)):
        before = second.weight.detach().clone()
        update_average(second, first, 0.9, step)
        torch.testing.assert_close(second.weight, decay * before + (1 - decay) * first.weight)
