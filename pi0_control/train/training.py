"""train(): from recordings to a policy directory, in one call."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pi0_control.errors import CheckpointError, ConfigError, DatasetError
from pi0_control.model import Pi0
from pi0_control.model.lora import add_lora, merged_state
from pi0_control.model.parts import freeze
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.norm_stats import NormStats, RunningStats, VectorStats
from pi0_control.policy.policy import Pi0Policy
from pi0_control.policy.pretrained import CONFIG_FILE, POLICIES_DIR, TOKENIZER_FILE, PolicyFiles, read_policy
from pi0_control.policy.tokenizer import Tokenizer
from pi0_control.policy.transforms import PolicyTransforms, for_all_joints, policy_actions, policy_states
from pi0_control.train import layout
from pi0_control.train.batches import split_episodes, wrist_cameras
from pi0_control.train.cache import decode_images
from pi0_control.train.config import TrainConfig
from pi0_control.train.dataset import Dataset
from pi0_control.train.distributed import World, join_world
from pi0_control.train.flow import FlowStage
from pi0_control.train.grounding import GroundingHead, GroundingStage, Learner
from pi0_control.train.inspection import check_numbers
from pi0_control.train.recording import camera_stats
from pi0_control.train.run_folder import RunFolder
from pi0_control.train.trainer import Stage, Trainer

Paths = Sequence[str | Path]
MINI_TOKENIZER = POLICIES_DIR / "mini" / TOKENIZER_FILE

_MIN_SPREAD = 1e-3  # a joint that hardly moves must not blow up when it is normalised
_MIN_SHARE = 0.1  # nor one that seldom does: of its range, what is normalised to -1 to 1
_FREE_TO_CHANGE = (
    "device",
    "gradient_checkpointing",
    "parallel",
    "threads",
    "log_every",
    "validate_every",
    "checkpoint_every",
)  # when a run is resumed


def train(
    config: TrainConfig,
    dataset_roots: Paths,
    out: str | Path,
    policy_config: PolicyConfig | None = None,
    *,
    grounding_roots: Paths = (),
    templates: Sequence[str] = (),
    tokenizer: str | Path = MINI_TOKENIZER,
    init: str | Path | None = None,
    init_known: Mapping[str, Any] = MappingProxyType({}),
    keep_norm_stats: bool = False,
    camera_names: Mapping[str, str] = MappingProxyType({}),
    resume: bool = False,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Pi0Policy:
    """Learn what words mean from random scenes (if asked for), then the demonstrations; write a policy directory.

    Under torchrun the processes share each batch, and all of them must see the folders.

    Args:
        config: of the training.
        dataset_roots: demonstrations.
        out: the policy directory to write; it also gets ``checkpoint.pt``, ``train_log.jsonl`` and ``tensorboard/``.
            The policy in it is brought up to date with every checkpoint of the demonstrations' stage.
        policy_config: of a policy that starts from random weights.
        grounding_roots: random scenes with object positions; without them the words are not learned first.
        templates: wordings with ``{object}``, for the random scenes.
        tokenizer: SentencePiece model of a policy that starts from random weights.
        init: a policy (name or directory) to start from, instead of ``policy_config`` and ``tokenizer``.
        init_known: what the files of ``init`` do not tell, as for :func:`read_policy`.
        keep_norm_stats: normalise as ``init`` does, not by the statistics of the demonstrations.
        camera_names: what the recordings call a camera of the robot, where that is not its name.
        resume: go on from the checkpoint in ``out``; from the beginning where there is neither a run nor a policy.
        cache_dir: where decoded images are kept; by default a folder ``.cache`` beside each first root.
        show_progress: draw progress bars and print validation scores.

    Raises:
        ConfigError: options that do not go together, nothing to train, no such device, or batches that the processes
            cannot share evenly.
        DatasetError: recordings that cannot be read or do not fit the policy.
        CheckpointError: ``out`` holds a policy without its run, or a run that does not fit or that ``resume`` was not
            set for; or another process trains there.
    """
    if (policy_config is None) == (init is None):
        raise ConfigError("Got both or neither of a policy config and a policy to start from; expected one of them.")
    if keep_norm_stats and init is None:
        raise ConfigError("keep_norm_stats is set without init; expected a policy to start from, whose they are.")
    if config.grounding_steps not in (0, TrainConfig.grounding_steps) and not grounding_roots:
        raise ConfigError(f"grounding_steps is {config.grounding_steps} without grounding; expected random scenes.")
    if init is None and init_known:
        raise ConfigError(f"Got {sorted(init_known)} without init; expected a policy to start from, which it is about.")
    if not config.steps and not (grounding_roots and config.grounding_steps):
        raise ConfigError("Nothing to train: steps is 0 and there is no grounding; expected steps above 0.")
    with join_world(config) as world, _open_folder(out, resume, world) as folder:
        for name in ("batch_size", "grounding_batch_size") if grounding_roots else ("batch_size",):
            world.check_batch(name, getattr(config, name))
        if config.threads:
            torch.set_num_threads(config.threads)
        dataset = Dataset.open(dataset_roots)
        files = None if init is None else read_policy(init, **init_known)
        model, transforms = _start(config, dataset, policy_config, tokenizer, files, keep_norm_stats)
        _prepare(model, config)
        show_progress = show_progress and world.is_main
        with world.main_first():
            data = [(dataset, *_images(dataset, transforms.config, camera_names, cache_dir, show_progress))]
            if grounding_roots:
                scenes = Dataset.open(grounding_roots)
                _check_fit(scenes, transforms.config)
                data.append((scenes, *_images(scenes, transforms.config, camera_names, cache_dir, show_progress)))
        stages: list[Stage] = []
        if grounding_roots:
            stages.append(GroundingStage(scenes, data[1][1], transforms, templates, config))
        stages.append(FlowStage(dataset, data[0][1], transforms, config))
        positions = np.concatenate([part.objects.reshape(-1, 3) for part, _, _ in data])
        torch.manual_seed(config.seed)
        learner = Learner(model, GroundingHead(model.config.prefix_width, positions))
        trainer = Trainer(
            config,
            learner,
            stages,
            folder,
            world,
            settings=_settings(config, transforms, [held for _, _, held in data], templates if grounding_roots else ()),
            on_checkpoint=_saver(config, transforms, dataset, camera_names, folder.path),
            show_progress=show_progress,
        )
        if folder.checkpoint_file.exists():
            trainer.resume()
        trainer.run()
        return Pi0Policy.from_pretrained(folder.path)


def compute_norm_stats(dataset: Dataset, config: PolicyConfig, frames: NDArray[np.int64]) -> NormStats:
    """Statistics of the states of some frames and of the actions that follow each, as the policy will predict them.

    Whatever the policy's normalisation, it makes each of these values less than 20 in magnitude.
    """
    dataset = replace(dataset, actions=for_all_joints(dataset.actions, config))
    state, actions = RunningStats(dataset.states.shape[1]), RunningStats(len(config.commanded))
    for part in np.array_split(frames, max(1, len(frames) // 4096)):
        state.update(policy_states(dataset.states[part], config))
        chunks, is_pad = dataset.action_chunks(part, config.model.action_horizon)
        actions.update(policy_actions(chunks, dataset.states[part], config)[~is_pad])
    return NormStats(_with_spread(state), _with_spread(actions))


def _open_folder(out: str | Path, resume: bool, world: World) -> RunFolder:
    """The folder, where it may be trained in: neither a run nor a policy is overwritten."""
    folder = RunFolder(out, writes=world.is_main)
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"{folder.path} is a file; expected a folder or a new name for one.")
    has_run = folder.checkpoint_file.exists()
    if has_run and not resume:
        raise CheckpointError(f"{folder.path} holds a training run; resume it or train into another folder.")
    if (folder.path / CONFIG_FILE).exists() and not has_run:
        raise CheckpointError(f"{folder.path} holds a policy without its run; train into another folder.")
    return folder


def _with_spread(running: RunningStats) -> VectorStats:
    """The statistics with a smallest spread, so that normalising blows nothing up."""
    stats, (lowest, highest) = running.result(), running.bounds
    assert stats.q01 is not None
    assert stats.q99 is not None
    smallest = _MIN_SHARE * (highest - lowest)
    seldom = stats.q99 - stats.q01 < smallest  # as of a gripper that is closed in less than 1 % of the frames
    low, high = _widened(np.where(seldom, lowest, stats.q01), np.where(seldom, highest, stats.q99))
    std = np.maximum(stats.std, np.maximum(smallest / 2, _MIN_SPREAD))
    return VectorStats(stats.mean, std, low, high, *_widened(lowest, highest))


def _widened(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    missing = np.maximum(_MIN_SPREAD - (high - low), 0) / 2
    return low - missing, high + missing


def _start(
    config: TrainConfig,
    dataset: Dataset,
    policy_config: PolicyConfig | None,
    tokenizer: str | Path,
    files: PolicyFiles | None,
    keep_norm_stats: bool,
) -> tuple[Pi0, PolicyTransforms]:
    """The network to start from and the transforms of its policy; a base model needs no statistics of its own."""
    if files:
        policy_config, tokenizer = files.config, files.require_tokenizer()
    assert policy_config is not None
    policy_config = replace(policy_config, rtc_max_delay=config.rtc_max_delay, resize="pad_antialias")  # the cache's
    if config.camera_dropout:
        policy_config = _wrists_optional(policy_config)
    _check_fit(dataset, policy_config)
    if files and keep_norm_stats:
        norm_stats = files.require_norm_stats()
    else:
        frames, _ = split_episodes(dataset, config.validation_fraction, config.seed)
        norm_stats = compute_norm_stats(dataset, policy_config, frames)
    transforms = PolicyTransforms(policy_config, norm_stats, Tokenizer(tokenizer, policy_config.model.max_token_len))
    torch.manual_seed(config.seed)
    if files is None:
        return Pi0(policy_config.model), transforms
    model = Pi0.empty(policy_config.model)
    files.checkpoint.load(model)
    return model, transforms


def _wrists_optional(config: PolicyConfig) -> PolicyConfig:
    """The policy, accepting observations without a wrist camera; unchanged where there would be none left to need."""
    wrists = wrist_cameras(config)
    if not wrists:
        seen = [camera for camera in config.cameras.values() if camera is not None]
        raise ConfigError(f"camera_dropout masks wrist cameras, and the policy has none; it looks through {seen}.")
    needed = set(config.required_cameras) - set(wrists)
    optional = tuple(camera for camera in config.cameras.values() if camera is not None and camera not in needed)
    return replace(config, optional_cameras=optional) if needed else config


def _prepare(model: Pi0, config: TrainConfig) -> None:
    """Freeze parts, add adapters and set what is kept for the backward pass."""
    torch.manual_seed(config.seed)
    freeze(model, config.freeze)
    add_lora(model, config.lora, config.lora_rank, config.lora_alpha)
    if config.gradient_checkpointing:
        model.checkpoint_gradients()


def _check_fit(dataset: Dataset, config: PolicyConfig) -> None:
    root = dataset.roots[0]
    for feature, values in ((layout.STATE, dataset.states), (layout.ACTION, dataset.actions)):
        joints = config.robot.joint_names
        if feature == layout.ACTION and values.shape[1] == len(config.commanded):
            joints = tuple(joints[index] for index in config.commanded)
        if values.shape[1] != len(joints):
            raise DatasetError(
                f"{root} has {feature} of {values.shape[1]} numbers; the policy's robot has {len(joints)}."
            )
        names = layout.joint_names_of(dataset.features, feature)
        if names and names != joints:
            raise DatasetError(f"{root} has {feature} of {list(names)}; the policy's robot has {list(joints)}.")
    if dataset.fps != config.robot.control_rate_hz:
        raise DatasetError(f"{root} has {dataset.fps} fps; the policy's robot runs at {config.robot.control_rate_hz}.")
    check_numbers(dataset, config)


def _images(
    dataset: Dataset,
    config: PolicyConfig,
    camera_names: Mapping[str, str],
    cache_dir: str | Path | None,
    show_progress: bool,
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Decoded images of the cameras the policy looks through, and what the dataset holds."""
    seen = [camera for camera in config.cameras.values() if camera is not None]
    unknown = [camera for camera in camera_names if camera not in seen]
    if unknown:
        raise ConfigError(f"The policy does not look through a camera {unknown[0]!r}; it looks through {seen}.")
    cameras = [camera_names.get(camera, camera) for camera in seen]
    for camera, name in zip(seen, cameras, strict=True):
        if name not in dataset.cameras:
            raise DatasetError(
                f"{dataset.roots[0]} has no camera {name!r}; it has {list(dataset.cameras)}, and --cameras {camera} "
                f"NAME says which of them is the robot's {camera!r}."
            )
    size, folder = config.model.vision.image_size, cache_dir or dataset.roots[0].absolute().parent / ".cache"
    images = decode_images(dataset, cameras, size, folder, show_progress=show_progress)
    return images, _contents(dataset, cameras)


def _contents(dataset: Dataset, cameras: Sequence[str]) -> dict[str, Any]:
    """What a dataset holds, for some cameras, wherever it lies and whenever it was copied there."""
    spans = [[episode.images[camera] for camera in cameras] for episode in dataset.episodes]
    sizes = {path: path.stat().st_size for path in {span.path for each in spans for span in each}}
    images = [(span.column, span.from_s, sizes[span.path]) for each in spans for span in each]
    hashed = {
        "tasks": repr(dataset.tasks).encode(),
        "task_index": dataset.task_index.tobytes(),
        "states": dataset.states.tobytes(),
        "actions": dataset.actions.tobytes(),
        "positions": dataset.objects.tobytes(),
        "targets": dataset.targets.tobytes(),
        "images": repr(images).encode(),
    }
    return {
        "folders": [root.absolute().name for root in dataset.roots],
        "cameras": list(cameras),
        "objects": list(dataset.object_names),
        "episodes": len(dataset.episodes),
        "lengths": [episode.length for episode in dataset.episodes],
        **{name: hashlib.sha256(value).hexdigest() for name, value in hashed.items()},
    }


def _settings(
    config: TrainConfig, transforms: PolicyTransforms, held: Sequence[dict[str, Any]], templates: Sequence[str]
) -> str:
    """Everything that the losses of a run depend on, as JSON; first what a user most likely changed."""
    parts = {
        "training": {name: value for name, value in asdict(config).items() if name not in _FREE_TO_CHANGE},
        **dict(zip(("demonstrations", "scenes"), held, strict=False)),
        "templates": list(templates),
        "tokenizer": hashlib.sha256(transforms.tokenizer.serialized).hexdigest(),
        "policy": transforms.config.to_dict(),
        "norm_stats": asdict(transforms.norm_stats),
    }
    return json.dumps(parts, default=np.ndarray.tolist)


def _saver(
    config: TrainConfig,
    transforms: PolicyTransforms,
    dataset: Dataset,
    camera_names: Mapping[str, str],
    folder: Path,
) -> Callable[[Mapping[str, Tensor], str, int], None]:
    """What writes the policy directory from the state dict of an averaged learner."""
    cameras = [camera for camera in transforms.config.cameras.values() if camera is not None]
    seen = camera_stats(dataset, {camera: camera_names.get(camera, camera) for camera in cameras})

    def save(averaged: Mapping[str, Tensor], stage: str, step: int) -> None:
        if stage == GroundingStage.name and config.steps:
            return  # it cannot act yet
        model = Pi0.empty(transforms.config.model)
        policy = {name.removeprefix("policy."): v for name, v in averaged.items() if name.startswith("policy.")}
        model.load_state_dict(merged_state(policy, config.lora_alpha))
        provenance = {**transforms.config.provenance, "training": _provenance(config, dataset, stage, step)}
        policy_config = replace(transforms.config, camera_stats=seen, provenance=provenance)
        Pi0Policy(model, policy_config, transforms.norm_stats, transforms.tokenizer).save(folder)

    return save


def _provenance(config: TrainConfig, dataset: Dataset, stage: str, step: int) -> dict[str, Any]:
    return {
        "datasets": [root.name for root in dataset.roots],
        "episodes": len(dataset.episodes),
        "frames": len(dataset),
        "stage": stage,
        "step": step,
        "config": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()},
    }
