"""Chunks whose actions tell where they come from, so that whatever is emitted shows whether it may be."""

from typing import Any

import numpy as np

from pi0_control.control.chunking import ChunkingConfig, ChunkPlayer
from pi0_control.types import ActionChunk, Observation

DT_S = 0.05
HORIZON = 6
STRATEGIES = ("sync", "async", "ensemble", "rtc", "rtc_trained")
NO_STATE = np.zeros(4, np.float32)


def seen(now_s: float, prompt: str = "go") -> Observation:
    return Observation({}, NO_STATE, prompt, now_s)


def counting_chunk(start_s: float = 0.0, first: float = 0, horizon: int = HORIZON, dt_s: float = DT_S) -> ActionChunk:
    """Action i is [first + i, -(first + i)]."""
    steps = first + np.arange(horizon, dtype=np.float32)
    return ActionChunk(np.stack([steps, -steps], axis=1), start_s, dt_s)


def player_of(strategy: Any = "sync", execution_horizon: int = 4, **settings: Any) -> ChunkPlayer:
    return ChunkPlayer(ChunkingConfig(strategy, execution_horizon, **settings))


def infer(player: ChunkPlayer, now_s: float, first: float = 0, **chunk: Any) -> None:
    """An inference that takes no time."""
    player.begin(now_s, seen(now_s))
    player.load(counting_chunk(now_s, first, **chunk), now_s)


def due(player: ChunkPlayer, now_s: float) -> float | None:
    action = player.action(now_s)
    return None if action is None else float(action[0])


def play(player: ChunkPlayer, steps: int, latency: int, prompt: str = "go") -> list[float | None]:
    """What is played on a regular clock if inference takes so long; the chunk begun at step k is k, k + 1, .."""
    played: list[float | None] = []
    coming: dict[int, ActionChunk] = {}
    for step in range(steps):
        now_s = step * DT_S
        if step in coming:
            player.load(coming.pop(step), now_s)
        if player.wants_chunk(now_s, prompt):
            player.begin(now_s, seen(now_s, prompt))
            coming[step + latency] = counting_chunk(now_s, step)
            if latency == 0:
                player.load(coming.pop(step), now_s)
        played.append(due(player, now_s))
    return played
