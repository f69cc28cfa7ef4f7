"""Grounding's laws: words come to mean things, and what is shared between prompts changes no number."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pi0_control.errors import ConfigError, DatasetError
from pi0_control.model import Pi0, Pi0Config, SiglipConfig
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.tokenizer import Tokenizer
from pi0_control.policy.transforms import PolicyTransforms
from pi0_control.robot import Joint, RobotSpec
from pi0_control.train.batches import Draws
from pi0_control.train.cache import decode_images
from pi0_control.train.config import TrainConfig
from pi0_control.train.dataset import Dataset
from pi0_control.train.distributed import World
from pi0_control.train.grounding import GroundingHead, GroundingStage, Learner, locate
from pi0_control.train.run_folder import RunFolder
from pi0_control.train.trainer import Trainer
from pi0_control.train.training import MINI_TOKENIZER, compute_norm_stats, train
from pi0_control.train.writer import DatasetWriter

ROBOT = RobotSpec("one_joint", (Joint("swing", "revolute", -2, 2, 1, 1, 0),), ("front",), 20.0)
MODEL = Pi0Config(
    vision=SiglipConfig(image_size=16, width=32, depth=0, num_heads=2, mlp_dim=32, stem="conv", stem_channels=(8, 16)),
    prefix_width=32,
    prefix_mlp_dim=64,
    action_width=16,
    action_mlp_dim=32,
    depth=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=256,
    action_dim=1,
    action_horizon=4,
    max_token_len=14,
    num_cameras=1,
    attn_backend="eager",
)
POLICY = PolicyConfig.for_robot(ROBOT, MODEL)
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
TEMPLATES = ("touch the {object} block", "lift the {object} cube")
CONFIG = TrainConfig(
    steps=2,
    grounding_steps=120,
    grounding_batch_size=16,
    batch_size=4,
    learning_rate=3e-3,
    warmup_steps=5,
    validation_fraction=0.25,
    brightness_jitter=0.0,
    contrast_jitter=0.0,
    log_every=10,
    validate_every=1000,
    checkpoint_every=1000,
    bf16=False,
    threads=1,
)
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red and a blue block somewhere on the table, seen from above."""
    root = tmp_path_factory.mktemp("scenes") / "data"
    rng = np.random.default_rng(0)
    with DatasetWriter(root, ROBOT, tuple(COLOURS), (32, 32)) as recorder:
        for _ in range(8):
            for _ in range(24):
                image, objects = np.full((32, 32, 3), 90, np.uint8), []
                for colour, half in zip(COLOURS.values(), rng.permutation([0, 16]), strict=True):
                    row, column = rng.integers(0, 22), half + rng.integers(0, 6)
                    image[row : row + 10, column : column + 10] = colour
                    objects.append([row / 100, column / 100, 0.02])
                recorder.add_frame({"front": image}, [0.0], [rng.normal()], objects)
            recorder.save_episode("look at the blocks")
    return root


@pytest.fixture(scope="module")
def parts(scenes: Path, tmp_path_factory: pytest.TempPathFactory):
    dataset = Dataset.open(scenes)
    images = decode_images(dataset, ROBOT.cameras, 16, tmp_path_factory.mktemp("cache"), threads=1)
    norm_stats = compute_norm_stats(dataset, POLICY, np.arange(len(dataset)))
    return dataset, images, PolicyTransforms(POLICY, norm_stats, Tokenizer(MINI_TOKENIZER, MODEL.max_token_len))


def learner_for(dataset: Dataset) -> Learner:
    torch.manual_seed(0)
    return Learner(Pi0(MODEL), GroundingHead(MODEL.prefix_width, dataset.objects))


def test_learns_where_the_named_object_is(parts, tmp_path: Path):
    dataset, images, transforms = parts
    learner = learner_for(dataset)
    stage = GroundingStage(dataset, images, transforms, TEMPLATES, CONFIG)
    before = stage.validate(learner, CPU)["grounding_error_m"]
    trainer = Trainer(CONFIG, learner, [stage], RunFolder(tmp_path), World(), show_progress=False)
    after = stage.validate(trainer.run(), CPU)["grounding_error_m"]
    assert after < 0.4 * before  # telling the colours apart is needed for that: half the error is the choice of block


def test_images_shared_between_prompts_are_encoded_as_if_they_were_not(parts):
    dataset, images, transforms = parts
    learner = learner_for(dataset)
    stage = GroundingStage(dataset, images, transforms, TEMPLATES, CONFIG)
    seen, masks = stage._images.get(np.array([0, 5, 9]), CPU)
    inputs = stage._inputs(seen, masks, np.array([[0, 1], [1, 0], [0, 0]]))
    repeated = dataclasses.replace(
        inputs,
        images=inputs.images.repeat_interleave(2, dim=0),
        image_masks=inputs.image_masks.repeat_interleave(2, dim=0),
    )
    with torch.no_grad():
        torch.testing.assert_close(locate(learner, inputs), locate(learner, repeated), atol=1e-5, rtol=0)


def test_every_object_is_asked_for_with_its_own_position(parts):
    dataset, images, transforms = parts
    stage = GroundingStage(dataset, images, transforms, TEMPLATES, CONFIG)
    seen, masks = stage._images.get(np.array([0]), CPU)
    inputs = stage._inputs(seen, masks, np.array([[0, 1]]))
    words = [transforms.tokenizer.decode(tokens.numpy()).strip() for tokens in inputs.tokens]
    assert words == ["touch the red block", "lift the blue cube"]


def test_wordings_may_name_another_object(parts):
    dataset, images, transforms = parts
    stage = GroundingStage(dataset, images, transforms, ["put the {object} block on the {other} one"], CONFIG)
    words = [transforms.tokenizer.decode(tokens.numpy()).strip() for tokens in stage._tokens.flatten(0, 1)]
    assert words == ["put the red block on the blue one", "put the blue block on the red one"]
    positions, is_named = stage._named(np.array([3]), np.array([[0, 0]]), CPU)
    assert positions[0].tolist() == dataset.objects[3].tolist()
    assert positions[1].tolist() == dataset.objects[3, ::-1].tolist()
    assert is_named.all()


def test_what_is_not_named_costs_nothing(parts):
    head = GroundingHead(8, np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32))
    predicted, positions = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    first, both = torch.tensor([[1.0, 0.0]] * 4), torch.ones(4, 2)
    elsewhere = positions + torch.tensor([[0.0], [1.0]])
    assert head.loss(predicted, positions, first) == head.loss(predicted, elsewhere, first)
    assert head.loss(predicted, positions, both) != head.loss(predicted, elsewhere, both)
    assert head.loss(predicted, positions, 0 * both) == 0


def test_the_head_reads_the_words_and_nothing_behind_them(parts):
    head = GroundingHead(8, np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32))
    prefix, mask = torch.randn(2, 9, 8), torch.tensor([[True, True, False]] * 2)
    changed = prefix.clone()
    changed[:, [0, 3, 8]] += 1.0  # images, and padding
    assert torch.equal(head(prefix, mask), head(changed, mask))
    changed[:, 6] += torch.randn(8)
    assert not torch.allclose(head(prefix, mask), head(changed, mask))


def test_errors_are_in_metres():
    positions = np.array([[0.0, 0.1, 0.3], [0.4, 0.5, 0.3]], np.float32)
    head = GroundingHead(8, positions)
    truth = torch.tensor([0.2, 0.3, 0.3])
    assert float(head.error_m(torch.zeros(3), truth)) == pytest.approx(0, abs=1e-6)  # zero means the mean
    assert float(head.error_m(torch.tensor([0.0, 0.0, 1.0]), truth)) == pytest.approx(0.02)  # smallest spread


def test_one_run_grounds_then_learns_the_policy(scenes: Path, tmp_path: Path):
    config = replace(CONFIG, grounding_steps=3, validation_fraction=0.2)
    policy = train(
        config,
        [scenes],
        tmp_path,
        POLICY,
        grounding_roots=[scenes],
        templates=TEMPLATES,
        cache_dir=tmp_path,
        show_progress=False,
    )
    assert policy.config.provenance["training"]["stage"] == "policy"
    log = (tmp_path / "train_log.jsonl").read_text()
    assert log.index('"grounding"') < log.index('"policy"')


def test_wrong_wordings_and_datasets_are_named(parts, tmp_path: Path):
    dataset, images, transforms = parts
    for templates, message in (([], "got none"), (["touch it"], "expected {object}"), (["{object} {x}"], "'x'")):
        with pytest.raises(ConfigError, match=message):
            GroundingStage(dataset, images, transforms, templates, CONFIG)
    blind = replace(dataset, object_names=(), objects=dataset.objects[:, :0])
    with pytest.raises(DatasetError, match="no object positions"):
        GroundingStage(blind, images, transforms, TEMPLATES, CONFIG)


def test_a_step_asks_for_random_images_and_wordings(parts):
    dataset, images, transforms = parts
    learner = learner_for(dataset)
    stage = GroundingStage(dataset, images, transforms, TEMPLATES, CONFIG)
    losses = [float(stage.losses(learner, Draws(0, 0, step, World()))["loss"].detach()) for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
