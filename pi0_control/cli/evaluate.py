"""``pi0 eval``."""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro
from rich.console import Console
from rich.progress import Progress, TaskID

from pi0_control.cli.remote import connect, is_address
from pi0_control.cli.terminal import check_counts, progress_bars
from pi0_control.errors import ConfigError

if TYPE_CHECKING:
    from pi0_control.control.chunking import Strategy
    from pi0_control.policy import Pi0Policy, Policy
    from sims.episode import EpisodeResult, Play, Setting
    from sims.evaluate import RunResult

EVALUATION_SEED = 100_000  # recordings draw their scenes from another stream (sims/record.py)
TABLE_WIDTH = 100  # a table is never cut off, not even in a pipe of 80 columns
LIBRARIES = ("pi0-control", "torch", "mujoco", "gymnasium", "numpy")
EVERY_SUITE = "suites"
ANSWER_LIMIT_S = 60.0  # for a server; nothing moves meanwhile


@dataclass(frozen=True)
class EvalOptions:
    """What ``pi0 eval`` can be told.

    Attributes:
        policy: mini (bundled), a policy directory, a server's (ws://host:port), expert (scripted, sees everything) or
            random. A server's noise follows from the seed and --parallel while nobody else asks it, openpi's from
            nothing here.
        task: one or more of Reach, Lift, PickPlace, Stack, or all.
        episodes: episodes per task and suite.
        seed: seed of the first episode; the next ones count up. None of them is ever recorded or trained on.
        perturb: what varies in the scenes: one or more of none, camera, light, colour, size, distractors, wording,
            start, all of these at once (all), or every suite one after another (suites).
        against: further policies to play the same scenes, compared pair by pair; named as --policy is, so expert and
            random, the two ends of the scale, are accepted.
        parallel: episodes simulated at a time: same scenes and noise; results agree up to the rounding of batched
            inference. The latency of a single inference is measured only with 1.
        instruction: a control, whether --policy heeds its words: swapped asks for another colour in the same scene and
            judges that one, shuffled shows the words of a random goal and judges the original one, so that who heeds
            them succeeds by chance, 1/3 (Stack 1/6).
        mask_cameras: a control, whether --policy looks: cameras it gets no image of, or all.
        videos: films the first so many episodes per task and suite and, of learned policies, as many further failures.
        out: where results.json, report.html and the videos go.
        strategy: how chunks are played: one or more of sync, async, ensemble, rtc, and rtc_trained for policies trained
            so.
        latency_steps: simulated inference time, one or more: so many control steps later the chunk is there. Several
            strategies or latencies are tried each with each, to be compared in success and smoothness.
        execution_horizon: actions played from each chunk; if not given the policy's own recommendation, with strategies
            that infer while they play half a chunk at most.
        safety: every action passes the safety layer, as it would on a robot.
        device: where policies are computed, such as cpu or cuda.
        show: watch in MuJoCo's viewer.
    """

    policy: str = "mini"
    task: tuple[str, ...] = ("all",)
    episodes: int = 20
    seed: int = EVALUATION_SEED
    perturb: tuple[str, ...] = ("none",)
    against: tuple[str, ...] = ()
    parallel: int = 1
    instruction: str = "original"
    mask_cameras: tuple[str, ...] = ()
    videos: int = 1
    out: Path = Path("outputs/eval")
    strategy: tuple[str, ...] = ("sync",)
    latency_steps: tuple[int, ...] = (0,)
    execution_horizon: int | None = None
    safety: bool = False
    device: str = "cpu"
    show: bool = False


def evaluate(options: Annotated[EvalOptions, tyro.conf.arg(name="")]) -> None:
    """Measure the success of a policy on the simulated tasks: tables, results.json, report.html and videos."""
    from sims.evaluate import RunResult, write_results
    from sims.html_report import write_report
    from sims.pool import open_pool
    from sims.tasks import get_tasks

    _check_numbers(options)
    tasks, suites, contestants = get_tasks(options.task), _suites(options.perturb), _contestants(options)
    results = list[RunResult]()
    with ExitStack() as opened:
        policies = {setting: _policy(setting, options.device, opened) for setting in contestants}
        about = _about(options, contestants)
        options.out.mkdir(parents=True, exist_ok=True)
        pool = opened.enter_context(closing(open_pool(options.parallel)))
        progress = opened.enter_context(progress_bars("{task.fields[success]}"))
        for suite in suites:
            for contestant in contestants:
                for task in tasks:
                    setting = replace(contestant, task=task.name, suite=suite)
                    is_repeated = contestant.is_scripted and contestant != contestants[0] and suite != suites[0]
                    films = 0 if is_repeated else options.videos  # a baseline looks the same in every suite
                    results.append(_run(setting, policies[contestant], options, films, pool, progress))
                    written = write_results(options.out / "results.json", results, about)  # nothing measured is lost
    _print(results, options)
    write_report(options.out / "report.html", written)
    print(f"Figures: {options.out / 'results.json'}\nReport with videos: {options.out / 'report.html'}")


def _check_numbers(options: EvalOptions) -> None:
    check_counts(options.episodes, options.seed)
    if options.videos < 0:
        raise ConfigError(f"--videos is {options.videos}; expected 0 or more.")
    if options.show and options.parallel > 1:
        raise ConfigError(f"--show watches one episode at a time; --parallel is {options.parallel}.")


def _suites(names: tuple[str, ...]) -> tuple[str, ...]:
    from sims.variation import SUITES

    for name in names or ("",):
        if name not in (*SUITES, EVERY_SUITE):
            raise ConfigError(f"No suite {name!r}; the suites are {', '.join(SUITES)}, or {EVERY_SUITE} for each.")
    return tuple(suite for suite in SUITES if suite in names or EVERY_SUITE in names)


def _contestants(options: EvalOptions) -> list["Setting"]:
    """The policy with the controls asked for, and those to compare it with, without; for a swap also its reference."""
    from sims.controls import find_cameras
    from sims.episode import CAMERAS, INSTRUCTIONS, ORIGINAL, SHUFFLED, Setting

    if options.instruction not in INSTRUCTIONS:
        raise ConfigError(f"No instruction {options.instruction!r}; expected one of {', '.join(INSTRUCTIONS)}.")
    masked, plays = find_cameras(options.mask_cameras, CAMERAS), _plays(options)
    plain = Setting(options.policy, play=plays[0], render_mode="human" if options.show else None)
    others = [replace(plain, policy=name) for name in options.against]
    main = replace(plain, instruction=options.instruction, masked_cameras=masked)
    if main.is_scripted and (masked or options.instruction == SHUFFLED):
        raise ConfigError(f"{options.policy} neither reads nor looks; --instruction and --mask-cameras test who does.")
    reference = replace(main, instruction=ORIGINAL)
    if main.is_swapped and reference not in others:
        others.insert(0, reference)  # what is taken with and without the swap
    if others and len(plays) > 1:
        raise ConfigError(
            "Several strategies or latencies compare --policy with itself; --against and --instruction swapped need "
            f"one of each, got {', '.join(options.strategy)} and {', '.join(map(str, options.latency_steps))}."
        )
    contestants = [main, *others]
    if len({setting.file_stem for setting in contestants}) < len(contestants):
        labels = ", ".join(setting.label for setting in contestants)
        raise ConfigError(f"--policy and --against: two have the same name, or would in a file name: {labels}.")
    return contestants + [replace(main, play=play) for play in plays[1:]]


def _plays(options: EvalOptions) -> list["Play"]:
    """Every strategy with every latency; ConfigError where one does not exist or is given twice."""
    from pi0_control.control import ChunkingConfig
    from sims.episode import EXPERT, RANDOM, Play

    plays = []
    for strategy, latency in product(options.strategy, options.latency_steps):
        chunking = ChunkingConfig(cast("Strategy", strategy), options.execution_horizon)
        plays.append(Play(chunking.strategy, latency, options.execution_horizon, options.safety))
    if min(options.latency_steps, default=-1) < 0 or len(set(plays)) != max(len(plays), 1):
        raise ConfigError(
            f"--strategy {' '.join(options.strategy)} --latency-steps {' '.join(map(str, options.latency_steps))}: "
            "expected at least one of each, none twice, and latencies of 0 or more."
        )
    if options.policy in (EXPERT, RANDOM) and plays != [Play()]:
        raise ConfigError(f"{options.policy} has no chunks to play; --strategy and its like are for those who do.")
    return plays


def _policy(setting: "Setting", device: str, opened: ExitStack) -> "Policy | None":
    """The policy of a setting; None where it is scripted. A link to a server ends with ``opened``."""
    from pi0_control.policy import RtcConfig
    from pi0_control.robot import RobotSpec
    from sims.controls import without_cameras

    if setting.is_scripted:
        return None
    if is_address(setting.policy):
        if setting.masked_cameras or setting.play.strategy == "rtc_trained":
            raise ConfigError(
                f"{setting.policy} is a server's policy; --mask-cameras and rtc_trained need one that is here."
            )
        return opened.enter_context(connect(setting.policy, RobotSpec.from_yaml("arm6"), ANSWER_LIMIT_S))
    policy = without_cameras(_load(setting.policy, device), setting.masked_cameras)
    return policy.with_rtc(RtcConfig("trained")) if setting.play.strategy == "rtc_trained" else policy


@cache
def _load(name: str, device: str) -> "Pi0Policy":
    """A policy, once for all settings that share it."""
    from pi0_control.policy import Pi0Policy
    from pi0_control.robot import RobotSpec

    return Pi0Policy.from_pretrained(name, device, robot=RobotSpec.from_yaml("arm6"))


def _run(
    setting: "Setting", policy: "Policy | None", options: EvalOptions, films: int, pool: Any, progress: Progress
) -> "RunResult":
    from sims.evaluate import evaluate_run

    words = [setting.label, setting.play.words, setting.suite if setting.is_perturbed else "", setting.task]
    counter = _SuccessCounter(
        progress, progress.add_task(" ".join(filter(None, words)), total=options.episodes, success="")
    )
    return evaluate_run(
        setting,
        policy,
        options.episodes,
        options.seed,
        pool=pool,
        videos=options.out / "videos",
        num_videos=films,
        on_episode=counter,
    )


class _SuccessCounter:
    """Keeps the running success beside a progress bar."""

    def __init__(self, progress: Progress, bar: TaskID) -> None:
        self._progress, self._bar = progress, bar
        self._successes = self._count = 0

    def __call__(self, result: "EpisodeResult") -> None:
        self._successes += result.is_success
        self._count += 1
        self._progress.update(self._bar, advance=1, success=f"success {self._successes}/{self._count}")


def _print(results: list["RunResult"], options: EvalOptions) -> None:
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    for table in _tables(results, options):
        console.print(table, highlight=False)


def _tables(results: list["RunResult"], options: EvalOptions) -> Iterator[Any]:
    """What is printed: tables under their titles, each followed by how to read it."""
    from rich.text import Text

    from sims.episode import SHUFFLED
    from sims.evaluate import compare, count_swaps
    from sims.report import (
        COMPARISON_LEGEND,
        PLAY_LEGEND,
        SHUFFLED_LEGEND,
        comparison_table,
        play_table,
        success_legend,
        success_table,
        suite_table,
        swap_lines,
    )

    first = results[0].setting
    own = [result for result in results if result.setting.label == first.label]
    main = [result for result in own if result.setting.play == first.play]
    name = f"{'CONTROL, ' if first.is_control else ''}{first.label}"
    notes = [f"perturbed: {first.suite}"] if first.is_perturbed else []
    notes += [first.play.words] if first.play.words else []
    episodes = f"{options.episodes} episode{'s' if options.episodes > 1 else ''} a task"
    seeds = f"seeds {options.seed} to {options.seed + options.episodes - 1}"
    yield Text("\n" + ", ".join([f"{name}: {episodes}", seeds, *notes]), "bold")
    in_suite = [result for result in main if result.setting.suite == first.suite]
    yield success_table(in_suite)
    yield Text(success_legend(in_suite), "dim")
    if first.instruction == SHUFFLED:
        yield Text(SHUFFLED_LEGEND, "bold")
    if any(result.setting.suite != first.suite for result in main):
        yield Text(f"\n{name}: success by suite", "bold")
        yield suite_table(main)
    if any(result.setting.play.words for result in own):
        yield Text(f"\n{name}: how chunks were played", "bold")
        yield play_table(own)
        yield Text(PLAY_LEGEND, "dim")
    if comparisons := compare(results):
        yield Text(f"\n{name} (1) against others (2) in the same scenes", "bold")
        yield comparison_table(comparisons)
        yield Text(COMPARISON_LEGEND, "dim")
    yield from (Text(line, "bold") for line in swap_lines(count_swaps(results)))


def _about(options: EvalOptions, contestants: list["Setting"]) -> dict[str, Any]:
    """What the figures must be read with: settings, versions, machine, and the files that were evaluated."""
    main, others = contestants[0], [setting for setting in contestants if setting.label != contestants[0].label]
    return {
        "policy": main.label,
        "against": [setting.label for setting in others],
        "instruction": main.instruction,
        "mask_cameras": list(main.masked_cameras),
        "strategies": list(options.strategy),
        "latency_steps": list(options.latency_steps),
        "safety": options.safety,
        "seed": options.seed,
        "episodes": options.episodes,
        "parallel": options.parallel,
        "device": options.device,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "machine": {"architecture": platform.machine(), "cpus": os.cpu_count()},
        **_checkpoint(main),
        "against_checkpoints": {setting.label: _checkpoint(setting) for setting in others if not setting.is_scripted},
    }


def _checkpoint(setting: "Setting") -> dict[str, Any]:
    """How chunks were played, the policy's config and the hash of its weights; nothing of one that is not here."""
    if setting.is_scripted or is_address(setting.policy):
        return {}
    from pi0_control.control import ChunkingConfig
    from pi0_control.policy.pretrained import WEIGHTS_FILE, read_policy

    files = read_policy(setting.policy)
    config, weights = files.config, files.directory / WEIGHTS_FILE
    chunking = ChunkingConfig(setting.play.strategy, setting.play.execution_horizon)
    chunking = chunking.for_policy(config.model.action_horizon, config.execution_horizon)
    return {
        "execution_horizon": chunking.execution_horizon,
        "num_steps": config.num_steps,
        **({"checkpoint_sha256": _sha256(weights)} if weights.is_file() else {}),  # not of many files
        "config": config.to_dict(),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
