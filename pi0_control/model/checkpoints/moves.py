"""How the tensors of a checkpoint become the model's: renamed, laid out anew, joined, one at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from pi0_control.errors import CheckpointError

Layout = Callable[[Tensor], Tensor]
Shape = Sequence[int]
ALL_ROWS = (0, None)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Reader(ABC):
    """Tensors on disk: what they are is known at once, what they hold is read when asked for.

    Attributes:
        shapes, dtypes: of every tensor by name.
        merged: tensors that are the sum of several on disk, and how.
    """

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, torch.dtype]
    merged: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def read(self, name: str, layer: int | None = None) -> Tensor:
        """The whole tensor, or one entry of its first axis."""


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Move:
    """The way of one tensor of a checkpoint into the model.

    Attributes:
        source: its name in the checkpoint.
        targets: the model's names; one, or one per entry of the first axis if ``is_stacked``.
        rows: first and end of those it fills in the target; the rest comes from other tensors.
        layout: from the checkpoint's order of axes to the model's.
        is_stacked: all layers are one tensor.
    """

    source: str
    targets: tuple[str, ...]
    rows: tuple[int, int | None] = ALL_ROWS
    layout: Layout = _as_it_is
    is_stacked: bool = False

    def pieces(self, reader: Reader) -> Iterable[tuple[str, Tensor]]:
        """Each target with what goes into its rows."""
        for layer, target in enumerate(self.targets):
            yield target, self.layout(reader.read(self.source, layer if self.is_stacked else None))

    def fits(self, shape: Shape, expected: Shape) -> bool:
        """Whether a source of this shape fills its rows of a target of the expected shape, for all its targets."""
        if self.is_stacked and tuple(shape[:1]) != (len(self.targets),):
            return False
        try:
            got = self.layout(torch.empty(tuple(shape[self.is_stacked :]), device="meta")).shape
        except (RuntimeError, IndexError, ValueError):  # too few axes, or too many
            return False
        return got == torch.empty(tuple(expected), device="meta")[slice(*self.rows)].shape

    def how(self, reader: Reader, target: Tensor) -> str:
        """What is done to the tensor on its way into one of its targets; empty if it is taken as it is."""
        done = [
            reader.merged.get(self.source, ""),
            "one tensor per layer" if self.is_stacked else "",
            "" if self.layout is _as_it_is else "axes reordered",
            "" if self.rows == ALL_ROWS else "joined with others",
        ]
        dtype = reader.dtypes[self.source]
        if dtype != target.dtype:
            done.append(f"{dtype} to {target.dtype}".replace("torch.", ""))
        return ", ".join(filter(None, done))


def require_fit(
    moves: Iterable[Move],
    reader: Reader,
    expected: Mapping[str, Shape],
    summary: str,
    ignored: Container[str] = (),
) -> None:
    """Refuse a checkpoint that does not fill the model exactly.

    Args:
        moves: how its tensors should become the model's.
        reader: the checkpoint.
        expected: shapes of the model's tensors.
        summary: how the message begins.
        ignored: names that need no move.

    Raises:
        CheckpointError: lists the missing, unexpected, wrongly shaped and wrongly typed names of the checkpoint.
    """
    by_source = {move.source: move for move in moves}
    there = sorted(by_source.keys() & reader.shapes)
    raise_problems(
        {
            "missing": sorted(by_source.keys() - reader.shapes),
            "unexpected": sorted(name for name in reader.shapes.keys() - by_source if name not in ignored),
            "wrong shape": [
                f"{name} {list(reader.shapes[name])} for {move.targets[0]} {list(expected[move.targets[0]])}"
                for name in there
                if not (move := by_source[name]).fits(reader.shapes[name], expected[move.targets[0]])
            ],
            "not floating point": [name for name in there if reader.dtypes[name] not in FLOATS],
        },
        summary,
    )


@torch.no_grad()
def carry_out(moves: Iterable[Move], reader: Reader, targets: Mapping[str, Tensor]) -> None:
    """Copy tensor by tensor into the targets, to their dtypes and devices; what the targets lack is left out."""
    for move in moves:
        if targets.keys() >= set(move.targets):
            for target, piece in move.pieces(reader):
                targets[target][slice(*move.rows)].copy_(piece)


def raise_problems(problems: Mapping[str, list[str]], summary: str) -> None:
    """Raise a CheckpointError that lists the names of each kind, if there are any."""
    found = [f"{kind}: {shorten(names)}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{summary}; {'; '.join(found)}.")


def shorten(names: Iterable[str], most: int = 12) -> str:
    """The first names and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
