"""What one command costs on this machine, without the policy: ``python -m pi0_control.control.benchmark``."""

import time
from collections.abc import Callable

import numpy as np

from pi0_control.control.chunking import ChunkingConfig, ChunkPlayer, Strategy
from pi0_control.control.safety import Safety
from pi0_control.robot import RobotSpec
from pi0_control.types import ActionChunk, Command, Observation

COMMANDS = 5000
HORIZON = 50
STRATEGIES: tuple[Strategy, ...] = ("async", "ensemble")  # the least and the most to do

Step = Callable[[int], Command | None]


def tracking(robot: RobotSpec, reach: float) -> Step:
    """Safety alone, on a sine of ``reach`` velocity limits [s] per joint: 0.05 is easy, 9 beyond the limits."""
    safety = Safety(robot)
    ages_s = dict.fromkeys(safety.inputs, 0.0)
    actions = robot.home + reach * robot.max_velocity * np.sin(np.arange(100) * np.pi / 50)[:, None]
    pose = robot.home

    def step(index: int) -> Command | None:
        nonlocal pose
        command = safety.check(index * robot.dt_s, actions[index % 100], pose, ages_s)
        pose = pose if command is None else command.positions
        return command

    return step


def holding(robot: RobotSpec) -> Step:
    """Safety alone, without an action."""
    safety = Safety(robot)
    ages_s, home = dict.fromkeys(safety.inputs, 0.0), robot.home
    return lambda index: safety.check(index * robot.dt_s, None, home, ages_s)


def playing(robot: RobotSpec, config: ChunkingConfig) -> Step:
    """Chunks through the player and Safety, each of them there one step after it was wanted."""
    safety, player = Safety(robot), ChunkPlayer(config.for_policy(HORIZON, HORIZON // 2))
    ages_s, home = dict.fromkeys(safety.inputs, 0.0), robot.home
    actions = np.repeat(home[None], HORIZON, axis=0)
    coming: list[ActionChunk] = []

    def step(index: int) -> Command | None:
        now_s = index * robot.dt_s
        if coming:
            player.load(coming.pop(), now_s)
        if player.wants_chunk(now_s, "go"):
            player.begin(now_s, Observation({}, home, "go", now_s))
            coming.append(ActionChunk(actions, now_s, robot.dt_s, prompt="go"))
        action = player.action(now_s)
        return safety.check(now_s, action, home, ages_s, reason=player.reason)

    return step


def durations_us(step: Step) -> np.ndarray:
    """Time of each of ``COMMANDS`` commands [µs], float64 [COMMANDS], after a tenth as many to warm up."""
    durations = np.empty(COMMANDS + COMMANDS // 10)
    for index in range(len(durations)):
        start = time.perf_counter_ns()
        step(index)
        durations[index] = time.perf_counter_ns() - start
    return durations[COMMANDS // 10 :] / 1000


def main() -> None:
    """Print the median and the 99th percentile of every case."""
    robot = RobotSpec.from_yaml("arm6")
    cases = {
        "safety, tracking": tracking(robot, 0.05),
        "safety, tracking at the limits": tracking(robot, 9.0),
        "safety, holding": holding(robot),
    }
    cases |= {f"chunks ({name}) and safety": playing(robot, ChunkingConfig(strategy=name)) for name in STRATEGIES}
    print(f"{len(robot.joints)} joints, {COMMANDS} commands each    median     p99 [µs]")
    for name, step in cases.items():
        taken = durations_us(step)
        print(f"{name:34}{np.median(taken):8.1f}{np.percentile(taken, 99):8.1f}")


if __name__ == "__main__":
    main()
