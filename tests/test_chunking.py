from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from chunk_steps import DT_S, HORIZON, counting_chunk, due, infer, play, player_of, seen
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policy import ARM6, tiny_policy

from pi0_control.control.chunking import ChunkingConfig, ChunkPlayer, trained_delay
from pi0_control.errors import ConfigError
from pi0_control.policy import HoldPolicy, RtcConfig
from pi0_control.types import ActionChunk


@pytest.mark.parametrize(
    ("strategy", "latency", "played"),
    [
        ("sync", 0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("async", 0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("sync", 2, [None, None, 0, 1, 2, 3, None, None, 6, 7, 8, 9]),  # nothing is due while it infers
        ("async", 2, [None, None, 0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12]),  # the chunk begun at 6 from its action 2 on
        ("rtc", 2, [None, None, 0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12]),
        ("async", 4, [None] * 4 + [0, 1, 2, 3, 4, 5, None, None, 10, 11, 12]),  # holds, and skips what it played
    ],
)
def test_what_is_played_when_inference_takes_time(strategy: str, latency: int, played: list[float | None]) -> None:
    assert play(player_of(strategy, 4), len(played), latency) == played


def test_an_ensemble_asks_at_every_step_and_weighs_the_oldest_first() -> None:
    config = ChunkingConfig("ensemble", ensemble_decay=0.5).for_policy(horizon=3, recommended=2)
    player = ChunkPlayer(config)
    for step, value in enumerate((1.0, 10.0, 100.0, 1000.0)):
        now_s = step * DT_S
        assert player.wants_chunk(now_s, "go")
        player.begin(now_s, seen(now_s))
        player.load(ActionChunk(np.full((3, 2), value, np.float32), now_s, DT_S), now_s)
        action = player.action(now_s)
    weights = np.exp([0, -0.5, -1.0])
    assert action == pytest.approx(np.full(2, weights @ (10.0, 100.0, 1000.0) / weights.sum()))


def test_a_chunk_of_rtc_trained_that_is_later_than_it_was_made_for_is_dropped_and_the_next_is_made_for_more() -> None:
    player = player_of("rtc_trained", 2, first_delay=1)
    infer(player, 0.0)
    assert [due(player, step * DT_S) for step in (0, 1)] == [0, 1]
    prefix = player.begin(2 * DT_S, seen(2 * DT_S))
    assert prefix is not None
    assert (prefix.actions[:, 0].tolist(), prefix.delay, prefix.end) == ([2, 3, 4, 5], 1, 4)
    assert [due(player, step * DT_S) for step in (2, 3)] == [2, 3]
    player.load(counting_chunk(2 * DT_S, first=20), 4 * DT_S)
    assert player.reason == "chunk refused: it was made for a delay of 1 steps and came after 2"
    assert player.wants_chunk(4 * DT_S, "go")
    prefix = player.begin(4 * DT_S, seen(4 * DT_S))
    assert prefix is not None
    assert (prefix.actions[:, 0].tolist(), prefix.delay, prefix.end) == ([4, 5], 2, 2)
    assert due(player, 4 * DT_S) == 4


def test_the_forecast_is_the_worst_of_the_last_counts_and_a_warm_up_is_none() -> None:
    player = player_of("rtc", 3, first_delay=1, delay_memory=2)
    player.begin(0.0, seen(0.0))
    assert [due(player, step * DT_S) for step in range(9)] == [None] * 9  # the first inference is slow
    player.load(counting_chunk(0.0), 9 * DT_S)
    forecasts, step = [], 9
    for delay in (3, 1, 1, 0):
        while not player.wants_chunk(step * DT_S, "go"):
            assert due(player, step * DT_S) is not None
            step += 1
        stamp_s = step * DT_S
        prefix = player.begin(stamp_s, seen(stamp_s))
        assert prefix is not None
        forecasts.append(prefix.delay)
        for _ in range(delay):
            assert due(player, step * DT_S) is not None
            step += 1
        player.load(counting_chunk(stamp_s), step * DT_S)
        assert player.last_delay == delay
    assert forecasts == [1, 3, 3, 1]


def test_without_a_first_guess_the_first_delay_is_taken_for_the_longest_and_a_policy_may_take_less() -> None:
    for max_delay, delay in ((None, 3), (2, 2)):
        player = player_of("rtc", 3, max_delay=max_delay)
        play(player, 3, latency=0)
        prefix = player.begin(3 * DT_S, seen(3 * DT_S))
        assert prefix is not None
        assert (len(prefix.actions), prefix.delay, prefix.end) == (3, delay, 3)


def test_a_new_prompt_drops_the_chunk_also_the_one_under_way() -> None:
    player = player_of("async", 2)
    infer(player, 0.0)
    assert [due(player, step * DT_S) for step in (0, 1)] == [0, 1]
    player.begin(2 * DT_S, seen(2 * DT_S))
    assert not player.wants_chunk(2 * DT_S, "stop")
    assert due(player, 2 * DT_S) is None
    assert player.reason == "chunk of the former prompt 'go' dropped"
    player.load(counting_chunk(2 * DT_S), 3 * DT_S)
    assert due(player, 3 * DT_S) is None
    assert player.reason == "chunk refused: it is of the former prompt 'go'"
    assert player.wants_chunk(4 * DT_S, "stop")


def test_a_former_prompt_may_be_finished_and_is_never_averaged_with_the_new_one() -> None:
    player = player_of("ensemble", 2, on_new_prompt="finish")
    infer(player, 0.0)
    assert due(player, 0.0) == 0
    assert not player.wants_chunk(DT_S, "stop")
    assert due(player, DT_S) == 1
    assert player.reason == "finishing the chunk of the former prompt 'go'"
    assert player.wants_chunk(2 * DT_S, "stop")
    player.begin(2 * DT_S, seen(2 * DT_S, "stop"))
    player.load(counting_chunk(2 * DT_S, first=20), 2 * DT_S)
    assert due(player, 2 * DT_S) == 20
    assert player.reason == ""


def test_what_rtc_finishes_for_a_former_prompt_guides_no_step_beyond_the_delay() -> None:
    player = player_of("rtc", 2, on_new_prompt="finish", first_delay=1)
    play(player, 2, latency=0)
    prefix = player.begin(2 * DT_S, seen(2 * DT_S, "stop"))
    assert prefix is not None
    assert (prefix.delay, prefix.end) == (1, 1)


@pytest.mark.parametrize("dt_s", [0.0, -0.05, float("nan"), float("inf")])
def test_a_chunk_without_time_between_its_actions_is_refused(dt_s: float) -> None:
    player = player_of("async")
    infer(player, 0.0)
    assert due(player, 0.0) == 0
    infer(player, 0.05, first=10, dt_s=dt_s)
    assert player.reason == f"chunk refused: its actions are {dt_s} s apart"
    assert [due(player, step * DT_S) for step in (1, 2, 3)] == [1, 2, 3]


def test_a_chunk_is_refused_that_is_not_asked_for_not_finite_or_over() -> None:
    player = player_of("async", 1)
    player.load(counting_chunk(), 0.0)
    assert (due(player, 0.0), player.reason) == (None, "chunk refused: it is not of the inference under way")
    infer(player, 0.0)
    assert due(player, 0.0) == 0
    for chunk, words in (
        (counting_chunk(0.0), "not of the inference"),
        (replace(counting_chunk(DT_S), prompt="stop"), "not of the inference"),
        (replace(counting_chunk(DT_S), actions=np.full((HORIZON, 2), np.inf, np.float32)), "not all its actions are"),
    ):
        player.begin(DT_S, seen(DT_S))
        assert not player.load(chunk, DT_S)
        assert words in player.reason
    player.begin(DT_S, seen(DT_S))
    assert due(player, 4 * DT_S) == 4
    player.load(counting_chunk(DT_S, first=1, horizon=3), 4 * DT_S)
    assert player.reason == "chunk refused: the time of all its actions is over"
    player.abandon()
    assert player.reason == "chunk refused: the time of all its actions is over"
    assert [due(player, step * DT_S) for step in (5, 6)] == [5, None]
    assert player.reason == "chunk exhausted"
    player.begin(6 * DT_S, seen(6 * DT_S))
    player.abandon()
    assert (due(player, 7 * DT_S), player.reason) == (None, "inference failed or timed out")


def test_the_seam_is_measured_between_what_would_have_come_and_what_comes() -> None:
    player = player_of("async", 2)
    infer(player, 0.0)
    assert player.last_seam_jump is None
    assert [due(player, step * DT_S) for step in (0, 1)] == [0, 1]
    infer(player, 2 * DT_S, first=2.5)
    assert player.last_seam_jump is not None
    assert player.last_seam_jump.tolist() == [0.5, 0.5]
    assert [due(player, step * DT_S) for step in (2, 8)] == [2.5, None]
    infer(player, 9 * DT_S)
    assert player.last_seam_jump is None


def test_commands_at_a_higher_rate_lie_on_lines_that_end_at_the_actions() -> None:
    player = player_of("async", 6, interpolation=4)
    infer(player, 0.0, horizon=2)
    times = np.arange(8) * DT_S / 4
    assert [due(player, now_s) for now_s in times] == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1]
    infer(player, 2 * DT_S, first=3)
    assert [due(player, now_s) for now_s in 2 * DT_S + times] == [1.5, 2, 2.5, 3, 3.25, 3.5, 3.75, 4]
    assert due(player, 99 * DT_S) is None
    infer(player, 100 * DT_S, first=7)
    assert due(player, 100 * DT_S) == 7  # nothing to come from after a hold


# --- the clock ---


@settings(max_examples=60, deadline=None)
@given(dt_s=st.floats(1e-3, 1.0), first_step=st.integers(0, 10**6), horizon=st.integers(1, 50))
def test_on_a_regular_clock_every_action_is_played_once(dt_s: float, first_step: int, horizon: int) -> None:
    player = player_of("async", horizon)
    start_s = first_step * dt_s
    assert player.wants_chunk(start_s, "go")
    infer(player, start_s, horizon=horizon, dt_s=dt_s)
    played = []
    while not player.wants_chunk(now_s := (first_step + len(played)) * dt_s, "go"):
        played.append(due(player, now_s))
    assert played == list(range(horizon))
    assert player.action(now_s) is None


def test_an_action_is_due_for_half_a_period_about_its_time_and_never_again() -> None:
    player = player_of("async")
    infer(player, 10.0)
    assert [due(player, 10.0 + late_s) for late_s in (0.0, 0.02, 0.049, 0.051, 0.1, 0.0)] == [0, 0, 1, 1, 2, 2]


def test_a_loop_that_infers_by_itself_goes_on_where_it_stopped() -> None:
    player = player_of("sync", 2)
    infer(player, 0.0)
    assert [due(player, step * DT_S) for step in (0, 1)] == [0, 1]
    player.begin(2 * DT_S, seen(2 * DT_S))
    player.load(counting_chunk(2 * DT_S, first=2), 8 * DT_S)
    assert [due(player, step * DT_S) for step in (8, 9)] == [2, 3]


def test_changing_a_returned_action_does_not_change_the_chunk() -> None:
    player = player_of()
    infer(player, 0.0)
    action = player.action(0.0)
    assert action is not None
    action += 1
    assert due(player, 0.0) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "rct"}, r"No strategy 'rct'; available: \['sync', 'async', 'ensemble', 'rtc', 'rtc_trained'\]"),
        ({"on_new_prompt": "mix"}, "No on_new_prompt 'mix'"),
        ({"interpolation": 0}, "interpolation is 0; expected 1 or more"),
        ({"ensemble_decay": float("nan")}, "expected a finite number"),
        ({"execution_horizon": 0}, "execution_horizon is 0; expected one or more"),
        ({}, "execution_horizon is None; expected one or more"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ChunkPlayer(ChunkingConfig(**settings))


def test_the_execution_horizon_follows_from_the_policy_and_fits_it() -> None:
    assert ChunkingConfig().for_policy(16, 8).execution_horizon == 8
    assert ChunkingConfig("ensemble").for_policy(16, 8).execution_horizon == 1
    assert ChunkingConfig("rtc", 5).for_policy(16, 8).execution_horizon == 5
    for strategy in ("async", "rtc", "rtc_trained"):  # of a whole chunk nothing would be left to play meanwhile
        assert ChunkingConfig(strategy).for_policy(16, 16).execution_horizon == 8
        assert ChunkingConfig(strategy).for_policy(1, 1).execution_horizon == 1
    assert ChunkingConfig("sync").for_policy(16, 16).execution_horizon == 16
    assert ChunkingConfig("async", 16).for_policy(16, 8).execution_horizon == 16
    with pytest.raises(ConfigError, match="execution_horizon is 17; expected 1 to 16, the policy's horizon"):
        ChunkingConfig("rtc", 17).for_policy(16, 8)


def test_a_policy_is_given_no_more_than_it_was_trained_to_continue() -> None:
    def max_delay(strategy: Any, trained_delay: int | None, **settings: Any) -> int | None:
        return ChunkingConfig(strategy, **settings).for_policy(16, 8, trained_delay).max_delay

    assert [max_delay("rtc_trained", 3, max_delay=least) for least in (None, 2, 5)] == [3, 2, 3]
    assert [max_delay("rtc", 0, max_delay=least) for least in (None, 5)] == [None, 5]
    for strategy in ("rtc", "rtc_trained"):  # of a policy that does not tell
        assert [max_delay(strategy, None, max_delay=least) for least in (None, 5)] == [None, 5]
    with pytest.raises(ConfigError, match=r"is guided .* 'rtc'; got 'rtc_trained', available: .*'ensemble', 'rtc'\]"):
        max_delay("rtc_trained", 0)
    with pytest.raises(ConfigError, match=r"trained to, .*'rtc_trained'; got 'rtc', available: .*, 'rtc_trained'\]"):
        max_delay("rtc", 3)
    for strategy in ("sync", "async", "ensemble"):
        assert [max_delay(strategy, delay) for delay in (0, 3)] == [None, None]


def test_a_policy_tells_what_it_was_trained_to_continue() -> None:
    trained = tiny_policy(rtc=RtcConfig("trained"), rtc_max_delay=2)
    policies = (trained, trained.with_rtc(RtcConfig()), HoldPolicy(ARM6))
    assert [trained_delay(policy) for policy in policies] == [2, 0, None]
