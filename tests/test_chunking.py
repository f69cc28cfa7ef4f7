import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi0_control.control.chunking import ChunkPlayer
from pi0_control.errors import ConfigError
from pi0_control.types import ActionChunk

DT_S = 0.05


def counting_chunk(start_s: float = 0.0, horizon: int = 6, dt_s: float = DT_S) -> ActionChunk:
    """Action i is [i, -i]."""
    steps = np.arange(horizon, dtype=np.float32)
    return ActionChunk(np.stack([steps, -steps], axis=1), start_s, dt_s)


def due(player: ChunkPlayer, now_s: float) -> float:
    action = player.action(now_s)
    assert action is not None
    return float(action[0])


@given(dt_s=st.floats(1e-3, 1.0), first_step=st.integers(0, 10**6), horizon=st.integers(1, 50))
def test_on_a_regular_clock_every_action_is_played_once(dt_s: float, first_step: int, horizon: int) -> None:
    player = ChunkPlayer(horizon)
    player.load(counting_chunk(first_step * dt_s, horizon, dt_s))
    played = []
    while not player.needs_chunk(now_s := (first_step + len(played)) * dt_s):
        played.append(due(player, now_s))
    assert played == list(range(horizon))
    assert player.action(now_s) is None


def test_an_action_is_due_until_the_next_one() -> None:
    player = ChunkPlayer(6)
    player.load(counting_chunk(start_s=10.0))
    assert [due(player, 10.0 + late_s) for late_s in (0.0, 0.02, 0.049, 0.051, 0.1)] == [0, 0, 0, 1, 2]


def test_a_chunk_is_wanted_after_the_execution_horizon_and_still_plays_until_it_comes() -> None:
    player = ChunkPlayer(2)
    player.load(counting_chunk())
    assert [player.needs_chunk(step * DT_S) for step in range(4)] == [False, False, True, True]
    assert due(player, 3 * DT_S) == 3


def test_a_late_chunk_starts_at_the_action_meant_for_now() -> None:
    player = ChunkPlayer(4)
    player.load(counting_chunk(start_s=0.0))
    player.load(counting_chunk(start_s=2 * DT_S))
    assert due(player, 5 * DT_S) == 3


def test_nothing_is_due_without_a_chunk_before_it_starts_and_after_it_expired() -> None:
    player = ChunkPlayer(4)
    assert player.action(0.0) is None
    assert player.needs_chunk(0.0)
    assert not player.has_expired(0.0)
    player.load(counting_chunk(start_s=1.0))
    assert player.action(0.9) is None
    assert not player.has_expired(1.0 + 5 * DT_S)
    assert player.has_expired(1.0 + 6 * DT_S)
    assert player.action(1.0 + 6 * DT_S) is None


def test_an_expired_chunk_is_replaced_even_when_shorter_than_the_execution_horizon() -> None:
    player = ChunkPlayer(10)
    player.load(counting_chunk(horizon=3))
    assert [player.needs_chunk(step * DT_S) for step in range(4)] == [False, False, False, True]


def test_reset_forgets_the_chunk() -> None:
    player = ChunkPlayer(4)
    player.load(counting_chunk())
    player.reset()
    assert player.needs_chunk(0.0)
    assert player.action(0.0) is None


def test_changing_a_returned_action_does_not_change_the_chunk() -> None:
    player = ChunkPlayer(4)
    player.load(counting_chunk())
    action = player.action(0.0)
    assert action is not None
    action += 1
    assert due(player, 0.0) == 0


def test_the_execution_horizon_is_at_least_one() -> None:
    with pytest.raises(ConfigError, match="expected one or more"):
        ChunkPlayer(0)
