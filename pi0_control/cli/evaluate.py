"""``pi0 eval``."""

import hashlib
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from pi0_control.cli.terminal import check_counts, progress_bars

if TYPE_CHECKING:
    from sims.evaluate import Actor, EpisodeResult
    from sims.tabletop_env import TabletopEnv

EXPERT, RANDOM = "expert", "random"
EVALUATION_SEED = 100_000  # recordings draw their scenes from another stream (sims/record.py)
TABLE_WIDTH = 100  # a table is never cut off, not even in a pipe of 80 columns
LIBRARIES = ("pi0-control", "torch", "mujoco", "gymnasium", "numpy")


def evaluate(
    policy: str = "mini",
    task: tuple[str, ...] = ("all",),
    episodes: int = 20,
    seed: int = EVALUATION_SEED,
    out: Path = Path("outputs/eval"),
    execution_horizon: int | None = None,
    show: bool = False,
) -> None:
    """Measure the success of a policy on the simulated tasks: table, results.json and a video per task.

    Args:
        policy: mini (bundled), a policy directory, expert (scripted, sees everything) or random.
        task: one or more of Reach, Lift, PickPlace, Stack, or all.
        episodes: episodes per task.
        seed: seed of the first episode; the next ones count up. None of them is ever recorded or trained on.
        out: where results.json and the videos go.
        execution_horizon: actions played from each chunk; the policy's own recommendation if not given.
        show: watch in MuJoCo's viewer.
    """
    from sims.evaluate import TaskResult, evaluate_task, write_results
    from sims.report import LEGEND, success_table
    from sims.tasks import get_tasks

    check_counts(episodes, seed)
    tasks, make_actor = get_tasks(task), _actor_factory(policy, execution_horizon)
    about = {"policy": policy, "seed": seed, **_provenance(policy, execution_horizon)}
    results: list[TaskResult] = []
    out.mkdir(parents=True, exist_ok=True)
    with progress_bars("{task.fields[success]}") as progress:
        for each in tasks:
            bar = progress.add_task(each.name, total=episodes, success="")
            counter = _SuccessCounter(progress, bar)
            video = out / f"{each.name}.mp4"
            mode = "human" if show else None
            results.append(
                evaluate_task(each, make_actor, episodes, seed, video=video, render_mode=mode, on_episode=counter)
            )
            write_results(out / "results.json", results, about)  # after each task, so that nothing measured is lost
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    last = seed + episodes - 1
    console.print(success_table(results, f"{policy}: {episodes} episodes a task, seeds {seed} to {last}"))
    console.print(LEGEND, style="dim")
    console.print(f"Figures: {out / 'results.json'}   Videos: {', '.join(str(out / f'{t.name}.mp4') for t in tasks)}")


class _SuccessCounter:
    """Keeps the running success beside a progress bar."""

    def __init__(self, progress: Progress, bar: Any) -> None:
        self._progress, self._bar = progress, bar
        self._successes = self._count = 0

    def __call__(self, result: "EpisodeResult") -> None:
        self._successes += result.is_success
        self._count += 1
        self._progress.update(self._bar, advance=1, success=f"success {self._successes}/{self._count}")


def _actor_factory(policy: str, execution_horizon: int | None) -> Callable[["TabletopEnv"], "Actor"]:
    """How to make the actor for an environment; a policy is loaded once and shared."""
    from sims.evaluate import ExpertActor, RandomActor

    if policy == EXPERT:
        return ExpertActor
    if policy == RANDOM:
        return RandomActor
    from pi0_control.control.agent import Pi0Agent
    from pi0_control.policy.policy import Pi0Policy
    from pi0_control.robot import RobotSpec

    loaded = Pi0Policy.from_pretrained(policy, robot=RobotSpec.from_yaml("arm6"))
    return lambda env: Pi0Agent(loaded, execution_horizon)


def _provenance(policy: str, execution_horizon: int | None) -> dict[str, Any]:
    """What a figure must be read with: versions, machine, how chunks were played, and the checkpoint's hash."""
    about: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "machine": {"architecture": platform.machine(), "cpus": os.cpu_count()},
    }
    if policy not in (EXPERT, RANDOM):
        from pi0_control.policy.config import PolicyConfig
        from pi0_control.policy.policy import CONFIG_FILE, WEIGHTS_FILE, find_policy

        directory = find_policy(policy)
        config = PolicyConfig.load(directory / CONFIG_FILE)
        about["execution_horizon"] = execution_horizon or config.execution_horizon
        about["num_steps"] = config.num_steps
        about["checkpoint_sha256"] = hashlib.sha256((directory / WEIGHTS_FILE).read_bytes()).hexdigest()
    return about
