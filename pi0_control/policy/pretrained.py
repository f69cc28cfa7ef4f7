"""A policy on disk, ours or a public checkpoint: how it is used and its statistics, without its weights."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.files import write_file
from pi0_control.model.checkpoints import Checkpoint, locate, open_checkpoint
from pi0_control.model.config import Pi0Config
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.export import export
from pi0_control.policy.lerobot import check_features, lerobot_camera_stats, lerobot_settings, lerobot_stats
from pi0_control.policy.norm_stats import NormStats
from pi0_control.policy.settings import build_config, merge, read_settings
from pi0_control.policy.tokenizer import Tokenizer
from pi0_control.robot import RobotSpec

POLICIES_DIR = Path(__file__).parents[1] / "policies"
CONFIG_FILE, WEIGHTS_FILE = "policy.json", "model.safetensors"
STATS_FILE, TOKENIZER_FILE, ASSETS_DIR = "norm_stats.json", "tokenizer.model", "assets"
LEAST_SHARE = 0.9  # of a public model's vocabulary that its tokenizer has; Gemma's has 256000 of PaliGemma's 257152
TOKENIZER_FILES = (TOKENIZER_FILE, "paligemma_tokenizer.model", f"tokenizer/{TOKENIZER_FILE}")
Given = str | Path | Mapping[str, Any] | None


@dataclass(frozen=True)
class PolicyFiles:
    """A policy without its weights.

    Attributes:
        directory: where it is.
        config: how it is used.
        norm_stats: its statistics; None where a base model has none, which keeps it from being played.
        tokenizer: the file of its vocabulary, None where there is none, which keeps it from being played.
        checkpoint: its weights, not yet read.
    """

    directory: Path
    config: PolicyConfig
    norm_stats: NormStats | None
    tokenizer: Path | None
    checkpoint: Checkpoint = field(repr=False)

    def require_norm_stats(self) -> NormStats:
        """Its statistics.

        Raises:
            CheckpointError: there are none; says where they are looked for.
        """
        if self.norm_stats is None:
            raise CheckpointError(
                f"{self.directory} has no statistics; copy the folder {ASSETS_DIR} of the checkpoint it comes from "
                f"into it, or a {STATS_FILE}. A base model has none: fine-tune it first."
            )
        return self.norm_stats

    def require_tokenizer(self) -> Path:
        """The file of its vocabulary.

        Raises:
            CheckpointError: there is none; says where one is looked for.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                f"There is no tokenizer in or beside {self.directory}; copy PaliGemma's SentencePiece file there as "
                f"{TOKENIZER_FILES[1]} (or {TOKENIZER_FILES[0]}), or name it as the tokenizer."
            )
        return self.tokenizer

    def save(self, directory: str | Path) -> None:
        """Write all of a policy directory of ours but the weights, policy.json last."""
        directory = Path(directory)
        if self.norm_stats is not None:
            write_file(directory / STATS_FILE, self.norm_stats.save)
        if self.tokenizer is not None:
            tokenizer = self.tokenizer
            write_file(directory / TOKENIZER_FILE, lambda partial: shutil.copyfile(tokenizer, partial))
        write_file(directory / CONFIG_FILE, self.config.save)

    def export(self, directory: str | Path, to: Literal["openpi", "lerobot"]) -> None:
        """Write all but the weights, and openpi's config.json, of a directory of another library.

        Raises:
            ConfigError: that library cannot do what the policy needs; lists it.
        """
        export(self, Path(directory), to)


def read_policy(
    name: str | Path,
    policy_config: Given = None,
    robot: RobotSpec | None = None,
    asset: str | None = None,
    tokenizer: str | Path | None = None,
) -> PolicyFiles:
    """What there is of a policy besides its weights.

    Args:
        name: a bundled policy, a directory, or ``org/name`` on the Hugging Face hub.
        policy_config: for a public checkpoint, what its tensors do not tell: a bundled preset such as ``pi05_droid``,
            a YAML or JSON file with entries of policy.json, or these entries.
        robot: what is driven; the policy is for it where nothing else says for which, and refused if it is for another.
        asset: whose statistics, where an openpi checkpoint has those of several robots.
        tokenizer: a SentencePiece file, where none lies in or beside the directory.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit the others.
        RobotMismatchError: made for another robot.
        ConfigError: something remains unknown; says what and where to give it.
    """
    directory = find_policy(name)
    checkpoint, file = open_checkpoint(directory), directory / CONFIG_FILE
    if checkpoint.format != "pi0_control":
        settings = merge(read_settings(file if file.is_file() else None), read_settings(policy_config))
        config = _public_config(checkpoint, settings, robot)
        norm_stats = _public_stats(checkpoint, asset or settings.get("asset"), settings.get("usual_asset"))
    elif policy_config is None and asset is None:
        config, statistics = PolicyConfig.load(file), directory / STATS_FILE
        norm_stats = NormStats.load(statistics) if statistics.is_file() else None
    else:
        raise ConfigError(f"{file} says it all; expected neither a policy config nor an asset beside it.")
    if robot is not None:
        config.check_robot(robot)
    pieces = find_tokenizer(directory, tokenizer)
    if pieces is not None and tokenizer is None and checkpoint.format != "pi0_control":
        _check_vocabulary(pieces, config.model)
    return PolicyFiles(directory, config, norm_stats, pieces, checkpoint)


def _public_config(checkpoint: Checkpoint, settings: Mapping[str, Any], robot: RobotSpec | None) -> PolicyConfig:
    if checkpoint.format != "lerobot":
        return build_config(settings, {"resize": "pad_antialias"}, checkpoint, robot)
    config = build_config(settings, lerobot_settings(checkpoint), checkpoint, robot)
    check_features(checkpoint, config)
    return replace(config, camera_stats={**lerobot_camera_stats(checkpoint, config), **config.camera_stats})


def find_policy(name: str | Path) -> Path:
    """The directory of a bundled policy, of a path, or of a name on the hub; a bundled name goes before a directory.

    Raises:
        CheckpointError: none of them.
    """
    bundled = bundled_policies()
    if str(name) in bundled:
        return POLICIES_DIR / name
    directory = locate(name)
    if not directory.is_dir():
        raise CheckpointError(f"No policy {str(name)!r}; give a policy directory or one of the bundled {bundled}.")
    return directory


def bundled_policies() -> list[str]:
    """Names of the policies that ship with the package."""
    return sorted(config.parent.name for config in POLICIES_DIR.glob(f"*/{CONFIG_FILE}"))


def find_tokenizer(directory: Path, given: str | Path | None = None) -> Path | None:
    """The SentencePiece file given, or one in or beside a directory; None without any.

    Raises:
        CheckpointError: the one given does not exist.
    """
    if given is not None:
        if not Path(given).is_file():
            raise CheckpointError(f"No tokenizer file {given}; expected a SentencePiece model.")
        return Path(given)
    places = (folder / name for folder in (directory, directory.resolve().parent) for name in TOKENIZER_FILES)
    return next((place for place in places if place.is_file()), None)


def _check_vocabulary(tokenizer: Path, model: Pi0Config) -> None:
    """Refuse a tokenizer of another model that was found beside a public checkpoint.

    Raises:
        CheckpointError: it has far fewer pieces than the model.
    """
    size = Tokenizer(tokenizer, model.max_token_len).vocab_size
    if size < LEAST_SHARE * model.vocab_size:
        raise CheckpointError(
            f"Tokenizer {tokenizer} has {size} pieces; expected about the model's vocabulary of {model.vocab_size}. "
            "Name PaliGemma's SentencePiece file as the tokenizer."
        )


def assets_of(directory: Path) -> dict[str, Path]:
    """The statistics files of an openpi checkpoint by asset id, such as ``physical-intelligence/libero``."""
    root = directory / ASSETS_DIR
    return {path.parent.relative_to(root).as_posix(): path for path in sorted(root.glob(f"**/{STATS_FILE}"))}


def _public_stats(checkpoint: Checkpoint, asset: str | None, usual: str | None) -> NormStats | None:
    """Those of the asset asked for, else beside the weights, else LeRobot's, else of the usual or only asset, or none.

    Raises:
        CheckpointError: not of the asset asked for, or of several others; they are listed. Or the file is damaged.
    """
    directory, assets = checkpoint.directory, assets_of(checkpoint.directory)
    if asset is None:
        if (directory / STATS_FILE).is_file():
            return NormStats.load(directory / STATS_FILE)
        found = lerobot_stats(checkpoint) if checkpoint.format == "lerobot" else None
        if found is not None or not assets:
            return found
        asset = usual if usual in assets or len(assets) > 1 else next(iter(assets))
    if asset not in assets:
        raise CheckpointError(f"{directory} has no statistics of asset {asset!r}; give one of {list(assets)}.")
    return NormStats.load(assets[asset])
