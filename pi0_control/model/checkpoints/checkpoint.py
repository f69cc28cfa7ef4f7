"""One strict loader: our own directories, openpi's of PyTorch and of JAX, LeRobot's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.model.checkpoints.jax_names import jax_moves, jax_sizes
from pi0_control.model.checkpoints.moves import Move, Reader, Shape, carry_out, raise_problems, require_fit, shorten
from pi0_control.model.checkpoints.orbax import OrbaxTree, params_of
from pi0_control.model.checkpoints.report import LoadReport
from pi0_control.model.checkpoints.safetensors_file import INDEX_FILE, WEIGHTS_FILE, SafetensorsFile, weights_in
from pi0_control.model.checkpoints.settings import (
    SETTINGS_FILE,
    apply_lerobot,
    apply_openpi,
    read_object,
    read_settings,
)
from pi0_control.model.checkpoints.sizes import UNTOLD, SizesOf
from pi0_control.model.checkpoints.torch_names import (
    LEGACY_STATISTICS,
    is_public,
    openpi_names,
    torch_moves,
    torch_sizes,
)
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import Pi0
from pi0_control.model.skeleton import skeletons

Format = Literal["pi0_control", "openpi_torch", "openpi_jax", "lerobot"]
CONFIG_FILE, ADAPTER_FILE = "policy.json", "adapter_model.safetensors"
_OWN_NAMES = ("vision.", "embedding.", "prefix_", "suffix_")
MODEL_ENTRY = "pi0_control.model"  # in the header of public files that we write: what no shape tells


@dataclass(frozen=True)
class Checkpoint:
    """Weights on disk that fill a model of their ``config`` exactly; nothing but headers was read so far.

    Attributes:
        directory: where it is.
        format: whose it is.
        config: the model.
        assumed: fields of ``config`` that no file tells; they have the values of the public models. Those that change
            no tensor (horizon, token length, number of cameras) may be replaced before a model is built.
        settings: LeRobot's or openpi's config.json; empty without one.
        moves, reader: how its tensors become the model's.
        ignored: names of tensors that are no weights of the model, and why.
    """

    directory: Path
    format: Format
    config: Pi0Config
    moves: Sequence[Move] = field(repr=False)
    reader: Reader = field(repr=False)
    assumed: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    ignored: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def extras(self) -> dict[str, Tensor]:
        """Tensors that are no weights, by name: the statistics that LeRobot up to 0.3 kept among them."""
        return {name: self.reader.read(name).clone() for name in self.ignored if name.startswith(LEGACY_STATISTICS)}

    def load(self, model: Pi0, allow_arch_change: bool = False) -> LoadReport:
        """Copy the weights into a model, tensor by tensor, to its dtypes and device.

        Args:
            model: of the sizes of ``config``.
            allow_arch_change: it may have switches on that the checkpoint was not trained with, to fine-tune from
                here; what it has of its own keeps its initial values and is reported as missing.

        Raises:
            CheckpointError: a switch is on and not allowed, the sizes are not those of the checkpoint, or a file
                cannot be read.
            ConfigError: the model is on the meta device.
        """
        if model.device.type == "meta":
            raise ConfigError("The model is on the meta device, which holds no weights; expected Pi0.empty(...).")
        changed = _changed_switches(model.config, self.config)
        if changed and not allow_arch_change:
            raise CheckpointError(
                f"The model has {', '.join(changed)} switched otherwise than {self.directory} was trained with; set it "
                "back or pass allow_arch_change=True to fine-tune from these weights."
            )
        state = model.state_dict()
        twin = shapes_of(model.config.public_twin()) if changed else {name: each.shape for name, each in state.items()}
        _require_same(shapes_of(self.config), twin, f"The model is not of the sizes of {self.directory}")
        carry_out(self.moves, self.reader, state)
        return self.report_on(state)

    def state(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """All weights under our names on the CPU, in the dtypes of the checkpoint or as :meth:`Pi0.cast` has them."""
        if dtype is not None:
            state = Pi0.empty(self.config, dtype).state_dict()
        else:
            dtypes: dict[str, torch.dtype] = {}
            for move in self.moves:
                own = torch.float32 if move.source in self.reader.merged else self.reader.dtypes[move.source]
                for target in move.targets:
                    dtypes[target] = torch.promote_types(own, dtypes.get(target, own))
            shapes = shapes_of(self.config)
            state = {name: torch.empty(tuple(shapes[name]), dtype=dtypes[name]) for name in shapes}
        carry_out(self.moves, self.reader, state)
        return state

    def report_on(self, state: Mapping[str, Tensor]) -> LoadReport:
        """What became of every tensor on its way into this state of a model."""
        used, converted, ignored = [], {}, dict(self.ignored)
        for move in self.moves:
            if not state.keys() >= set(move.targets):
                ignored[move.source] = "replaced by a switch of the model"
            elif how := move.how(self.reader, state[move.targets[0]]):
                converted[move.source] = how
            else:
                used.append(move.source)
        targets = {target for move in self.moves for target in move.targets}
        return LoadReport(tuple(used), converted, ignored, tuple(sorted(state.keys() - targets)))


def open_checkpoint(path: str | Path, *, lora_scaling: float = 1.0) -> Checkpoint:
    """Find out what a directory holds; reads headers only, and refuses what does not fill a model exactly.

    Args:
        path: a policy directory of ours, an openpi checkpoint (PyTorch, or JAX with ``params/``) or a LeRobot policy;
            weights may be in several files with an index.
        lora_scaling: alpha / rank of LoRA adapters in an openpi JAX checkpoint, which does not tell it; 1 as in
            openpi's own configurations.

    Raises:
        CheckpointError: no checkpoint, corrupt or partial; lists the names.
        ConfigError: a package that reads the format is not installed.
    """
    directory = Path(path)
    weights = weights_in(directory)
    if weights is not None:
        file = SafetensorsFile(weights)
        is_own = any(name.startswith(_OWN_NAMES) for name in file.shapes)
        return (_open_own if is_own else _open_torch)(directory, file)
    params = params_of(directory)
    if params is not None:
        return _open_jax(directory, OrbaxTree(params, lora_scaling))
    raise CheckpointError(f"{directory} is no checkpoint; {_what_there_is(directory)}")


def _open_own(directory: Path, file: SafetensorsFile) -> Checkpoint:
    config = _config_from(read_object(directory / CONFIG_FILE).get("model"), directory / CONFIG_FILE)
    moves = [Move(name, (name,)) for name in shapes_of(config)]
    return _checked(Checkpoint(directory, "pi0_control", config, moves, file))


def _open_torch(directory: Path, file: SafetensorsFile) -> Checkpoint:
    settings = read_settings(directory)
    there, ignored = openpi_names(file.shapes)
    sizes = torch_sizes({theirs: file.shapes[name] for theirs, name in there.items()})
    is_lerobot = "type" in settings or any(name.startswith(("model.", *LEGACY_STATISTICS)) for name in file.shapes)
    (apply_lerobot if is_lerobot else apply_openpi)(settings, sizes, directory / SETTINGS_FILE)
    if MODEL_ENTRY in file.metadata:
        entry = _parse(file.metadata[MODEL_ENTRY], file.path)
        config = _config_from(entry.get("model"), file.path)
        if not is_public(config):
            raise CheckpointError(f"{file.path} describes another model than its names belong to.")
        assumed = [name for name in UNTOLD if name in entry.get("assumed", ())]
        config = _agreed(config, assumed, sizes, directory / SETTINGS_FILE)
        sizes.assumed = [name for name in assumed if name in sizes.assumed]
    else:
        config = sizes.config(directory)
    moves = [replace(move, source=there.get(move.source, move.source)) for move in torch_moves(config)]
    format_: Format = "lerobot" if is_lerobot else "openpi_torch"
    return _checked(Checkpoint(directory, format_, config, moves, file, tuple(sizes.assumed), settings, ignored))


def _open_jax(directory: Path, tree: OrbaxTree) -> Checkpoint:
    sizes = jax_sizes(tree.shapes)
    config = sizes.config(directory)
    return _checked(Checkpoint(directory, "openpi_jax", config, jax_moves(config), tree, tuple(sizes.assumed)))


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, if its tensors fill the model exactly."""
    expected, config = shapes_of(checkpoint.config), checkpoint.config
    family = f"a model with {config.depth} layers of width {config.prefix_width} and {config.action_width}"
    summary = f"{checkpoint.directory} is not whole: read as {checkpoint.format}, {family}"
    require_fit(checkpoint.moves, checkpoint.reader, expected, summary, checkpoint.ignored)
    return checkpoint


def shapes_of(config: Pi0Config) -> dict[str, torch.Size]:
    """The shape of every tensor in the state of a model.

    Raises:
        CheckpointError: no machine has room for such sizes.
    """
    try:
        with skeletons():
            return {name: tensor.shape for name, tensor in Pi0(config).state_dict().items()}
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(f"The sizes of the model are beyond all bounds: {error}.") from error


def _require_same(ours: Mapping[str, Shape], theirs: Mapping[str, Shape], summary: str) -> None:
    """Refuse a model whose tensors (``theirs``) have other names or shapes than the checkpoint is for."""
    problems = {
        "the model lacks": sorted(ours.keys() - theirs.keys()),
        "the checkpoint lacks": sorted(theirs.keys() - ours.keys()),
        "wrong shape": [
            f"{name} {list(theirs[name])} instead of {list(ours[name])}"
            for name in sorted(ours.keys() & theirs.keys())
            if ours[name] != theirs[name]
        ],
    }
    raise_problems(problems, summary)


def _agreed(config: Pi0Config, assumed: Sequence[str], sizes: SizesOf, path: Path) -> Pi0Config:
    """The model of the header, with what config.json (at ``path``) tells of what the header assumes.

    The number of cameras may differ: LeRobot's features are without masked slots.

    Raises:
        CheckpointError: the two contradict each other.
    """
    told = {name: sizes.values[name] for name in UNTOLD if name not in sizes.assumed}
    for name, value in told.items():
        if name not in (*assumed, "num_cameras") and value != getattr(config, name):
            raise CheckpointError(
                f"{path} says {name} {value} and the header of the weights beside it {getattr(config, name)}; expected "
                "the same. Give another one as a setting of the policy."
            )
    return replace(config, **{name: value for name, value in told.items() if name in assumed})


def _changed_switches(model: Pi0Config, checkpoint: Pi0Config) -> list[str]:
    """Switches that no public model has and that are otherwise in the one than in the other."""
    names = dict.fromkeys((*model.changed_switches, *checkpoint.changed_switches))
    return [name for name in names if getattr(model, name) != getattr(checkpoint, name)]


def _config_from(values: Any, source: Path) -> Pi0Config:
    try:
        return Pi0Config.from_dict(values)
    except (ConfigError, TypeError, ValueError) as error:  # nested values of a wrong type end in the latter two
        raise CheckpointError(f"{source} describes no model: {error}") from error


def _parse(text: str, source: Path) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} has an entry {MODEL_ENTRY} that is not valid JSON: {error}.") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("assumed", []), list):
        raise CheckpointError(f"{source} has an entry {MODEL_ENTRY} of another form than we write.")
    return entry


def _what_there_is(directory: Path) -> str:
    """What was expected in a directory and where below it a checkpoint is."""
    if not directory.is_dir():
        return "there is no such directory."
    if (directory / ADAPTER_FILE).is_file():
        return f"it has {ADAPTER_FILE} alone; merge this adapter (PEFT) into the model it was trained for first."
    expected = f"expected {WEIGHTS_FILE} or params/_METADATA in it"
    above, marks = ("*", "*/*", "*/*/*"), (WEIGHTS_FILE, INDEX_FILE, "params")
    below = sorted(str(path.parent) for up in above for mark in marks for path in directory.glob(f"{up}/{mark}"))
    return f"{expected}; there are some in {shorten(below, 4)}." if below else f"{expected}."
