"""What the subcommands share: progress bars and checks of plain numbers."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pi0_control.errors import ConfigError


def progress_bars(*fields: str) -> Progress:
    """Progress bars on stderr with the time left; ``fields`` are further columns."""
    columns = [TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, fields)]
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def check_counts(episodes: int, seed: int) -> None:
    """Refuse numbers of episodes and seeds that make no sense with a ConfigError."""
    if episodes < 1:
        raise ConfigError(f"--episodes is {episodes}; expected 1 or more.")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}; expected 0 or more.")
