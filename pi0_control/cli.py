"""The ``pi0`` command: composes the rooms; each subcommand is one function."""

import hashlib
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pi0_control.errors import ConfigError, Pi0Error
from pi0_control.train.config import TrainConfig

if TYPE_CHECKING:
    from sims.evaluate import Actor, EpisodeResult
    from sims.tabletop_env import TabletopEnv

EXPERT, RANDOM = "expert", "random"
EVALUATION_SEED = 100_000  # recordings draw their scenes from another stream (sims/record.py)
TABLE_WIDTH = 100  # a table is never cut off, not even in a pipe of 80 columns
EXTRA_OF = {"pyarrow": "train"}
LIBRARIES = ("pi0-control", "torch", "mujoco", "gymnasium", "numpy")


def main() -> None:
    """Entry point of ``pi0``; user mistakes end with one sentence on stderr and exit code 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"eval": evaluate, "record": record, "train": train},
            prog="pi0",
            description="π0 and π0.5 policies: record demonstrations, train, and evaluate in simulation.",
        )
    except Pi0Error as error:
        print(f"pi0: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"pi0: {error.filename}: {error.strerror}." if error.filename else f"pi0: {error}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("pi0: interrupted.", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get(error.name or "")
        if extra is None:
            raise
        print(f"pi0: {error.name} is not installed; pip install 'pi0-control[{extra}]' brings it.", file=sys.stderr)
        sys.exit(2)


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

    _check_counts(episodes, seed)
    tasks, make_actor = get_tasks(task), _actor_factory(policy, execution_horizon)
    about = {"policy": policy, "seed": seed, **_provenance(policy, execution_horizon)}
    results: list[TaskResult] = []
    out.mkdir(parents=True, exist_ok=True)
    with _progress("{task.fields[success]}") as progress:
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


def record(
    task: tuple[str, ...] = ("all",),
    episodes: int = 100,
    seed: int = 0,
    *,
    out: Path,
) -> None:
    """Record demonstrations of the scripted expert as a LeRobotDataset v3.0; goes on where an earlier run stopped.

    Args:
        task: one or more of Reach, Lift, PickPlace, Stack, or all; scenes records random scenes instead, each with
            the place of every block, to learn the words from.
        episodes: episodes the dataset shall hold in the end.
        seed: from which all scenes are drawn.
        out: folder of the dataset.
    """
    from pi0_control.robot import RobotSpec
    from pi0_control.train.writer import DatasetWriter
    from sims import record as recorder
    from sims.scene import BLOCK_COLOURS

    _check_counts(episodes, seed)
    recorder.recorded_tasks(task)  # refuses a wrong name before the folder is made
    with DatasetWriter(out, RobotSpec.from_yaml("arm6"), tuple(BLOCK_COLOURS)) as writer, _progress() as progress:
        bar = progress.add_task(", ".join(task), total=episodes, completed=writer.num_episodes)
        recorder.record(task, episodes, seed, writer, on_episode=lambda count: progress.update(bar, completed=count))
    print(f"{out}: {writer.num_episodes} episodes, {writer.num_frames} frames.")


def train(
    dataset: tuple[Path, ...],
    out: Path,
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = TrainConfig(),  # noqa: B008  frozen
    grounding: tuple[Path, ...] = (),
    init: str | None = None,
    resume: bool = False,
) -> None:
    """Train a policy on recorded demonstrations; the result is a policy directory for ``pi0 eval --policy``.

    Args:
        dataset: one or more folders of demonstrations (LeRobotDataset v3.0).
        out: the policy directory to write; checkpoint.pt and train_log.jsonl go there too.
        config: of the training.
        grounding: folders of random scenes (``pi0 record --task scenes``), to learn what the words mean first.
        init: a policy to start from, by name or directory, instead of random weights at mini's size.
        resume: go on from the checkpoint in ``out``.
    """
    from pi0_control.model import Pi0Config
    from pi0_control.policy import PolicyConfig
    from pi0_control.robot import RobotSpec
    from pi0_control.train.training import train as run
    from sims.record import grounding_wordings

    fresh = PolicyConfig.for_robot(
        RobotSpec.from_yaml("arm6"), Pi0Config.preset("mini"), execution_horizon=4, num_steps=5
    )
    run(
        config,
        dataset,
        out,
        None if init else fresh,
        grounding_roots=grounding,
        templates=grounding_wordings(),
        init=init,
        resume=resume,
    )
    print(f"{out}: try it with  pi0 eval --policy {out}")


class _SuccessCounter:
    """Keeps the running success beside a progress bar."""

    def __init__(self, progress: Progress, bar: Any) -> None:
        self._progress, self._bar = progress, bar
        self._successes = self._count = 0

    def __call__(self, result: "EpisodeResult") -> None:
        self._successes += result.is_success
        self._count += 1
        self._progress.update(self._bar, advance=1, success=f"success {self._successes}/{self._count}")


def _progress(*fields: str) -> Progress:
    columns = [TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, fields)]
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


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


def _check_counts(episodes: int, seed: int) -> None:
    if episodes < 1:
        raise ConfigError(f"--episodes is {episodes}; expected 1 or more.")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}; expected 0 or more.")


if __name__ == "__main__":
    main()
