"""TrainLog: losses and scores as lines of JSON, and the same as TensorBoard curves."""

import json
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi0_control.files import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TrainLog:
    """Writes ``train_log.jsonl``, which counts, and event files in ``tensorboard/`` made from it.

    An entry has the name of its ``stage`` and the ``step``; its numbers become curves such as ``policy/loss``.

    Args:
        folder: of the run.
        writes: False leaves every file as it is; in processes beside the main one.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.file = folder / "train_log.jsonl"
        self.events = folder / "tensorboard"
        self._writes = writes
        self._curves: SummaryWriter | None = None

    def start(self, stages: Sequence[str], stage: int, step: int) -> None:
        """Begin behind a step of a stage: drop later entries, which will come again, and a torn last one.

        The event files are made anew, so they hold neither gaps nor points twice.
        """
        if not self._writes:
            return
        from torch.utils.tensorboard import SummaryWriter

        order = {name: index for index, name in enumerate(stages)}
        kept = [e for e in self._entries() if (order.get(e["stage"], len(order)), e["step"]) <= (stage, step)]
        text = "".join(json.dumps(entry) + "\n" for entry in kept)
        write_text(self.file, text)
        for old in self.events.glob("events.out.tfevents.*"):
            old.unlink()
        self._curves = SummaryWriter(str(self.events), purge_step=0)  # what a running TensorBoard has read is void
        for entry in kept:
            self._draw(entry)
        self._curves.flush()

    def add(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one entry; a value is a number or a mapping of numbers."""
        if self._curves is None:
            return
        entry = {"stage": stage, "step": step, "unix_s": round(clock.time(), 3), **values}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._draw(entry)
        self._curves.flush()

    def close(self) -> None:
        """Close the event file; entries added now are dropped."""
        if self._curves is not None:
            self._curves.close()
            self._curves = None

    def _draw(self, entry: Mapping[str, Any]) -> None:
        assert self._curves is not None
        values = {name: value for name, value in entry.items() if name not in ("stage", "step", "unix_s")}
        values |= {f"validation/{name}": value for name, value in values.pop("validation", {}).items()}
        for name, value in values.items():
            self._curves.add_scalar(f"{entry['stage']}/{name}", value, entry["step"], entry.get("unix_s"))

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Entries of the file up to the first that is not whole."""
        if not self.file.exists():
            return
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return
