"""What became of every tensor of a checkpoint."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from pi0_control.model.checkpoints.moves import shorten


@dataclass(frozen=True)
class LoadReport:
    """What a load did; as text, a table.

    Attributes:
        used: names of the checkpoint whose tensors were taken as they are, if under another name.
        converted: names of the checkpoint and what was done to the tensors.
        ignored: names of the checkpoint that are no weights of the model, and why.
        missing: names of the model that got nothing and keep their initial values; only where a change of the
            architecture was allowed.
    """

    used: tuple[str, ...]
    converted: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [("used", len(self.used), "as they are")]
        rows += [("converted", len(names), how) for how, names in _by_value(self.converted)]
        rows += [("ignored", len(names), f"{why}: {shorten(names, 3)}") for why, names in _by_value(self.ignored)]
        rows.append(("missing", len(self.missing), shorten(self.missing, 6)))
        return "\n".join(f"{kind:10}{count:5}  {what}".rstrip() for kind, count, what in rows)


def _by_value(entries: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, value in entries.items():
        names[value].append(name)
    return sorted(names.items())
