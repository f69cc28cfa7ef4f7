import json
import math

import numpy as np
import pytest

from sims.evaluate import (
    EpisodeResult,
    ExpertActor,
    RandomActor,
    TaskResult,
    evaluate_task,
    wilson_interval,
    write_results,
)
from sims.report import success_table
from sims.tasks import TASKS


def episode(is_success: bool, **changes) -> EpisodeResult:
    values = {"seed": 1, "prompt": "touch the red block", "wrong_object": False, "steps": 40, "simulated_s": 2.0}
    return EpisodeResult(**{**values, "is_success": is_success, "wall_s": 0.5, **changes})


@pytest.mark.parametrize(
    ("successes", "count", "interval"),
    [(168, 180, (0.887, 0.961)), (0, 20, (0.0, 0.161)), (20, 20, (0.839, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson_interval(successes, count, interval) -> None:
    assert wilson_interval(successes, count) == pytest.approx(interval, abs=1e-3)


def test_wilson_interval_solves_its_equation() -> None:
    for bound in wilson_interval(13, 20):
        assert abs(13 / 20 - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / 20))


def test_summary_counts_episodes_and_takes_percentiles_of_chunks() -> None:
    chunks = [{"preprocess": 1.0, "prefix": 2.0, "denoise": float(d)} for d in range(1, 102)]
    result = TaskResult("Reach", (episode(True, chunks_ms=chunks), episode(False, wrong_object=True)))
    figures = result.summary()
    assert (figures["success_rate"], figures["wrong_object_rate"], figures["mean_episode_steps"]) == (0.5, 0.5, 40)
    assert figures["real_time_factor"] == pytest.approx(4.0)
    assert figures["chunk_s"]["denoise"] == pytest.approx({"median": 0.051, "p95": 0.096})
    assert figures["chunk_s"]["total"]["median"] == pytest.approx(0.054)


def test_expert_episode_is_filmed_and_written(tmp_path) -> None:
    seen: list[EpisodeResult] = []
    video = tmp_path / "deep" / "Reach.mp4"
    result = evaluate_task(TASKS["Reach"], ExpertActor, 2, 100_000, video=video, on_episode=seen.append)
    assert tuple(seen) == result.episodes
    assert [entry.seed for entry in seen] == [100_000, 100_001]
    assert result.successes == 2
    assert video.stat().st_size > 10_000
    write_results(tmp_path / "results.json", [result], {"policy": "expert"})
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["policy"] == "expert"
    assert written["tasks"]["Reach"]["success_rate"] == 1.0
    assert written["tasks"]["Reach"]["episode_results"][1]["seed"] == 100_001


def test_random_actor_is_seeded() -> None:
    results = [evaluate_task(TASKS["Reach"], RandomActor, 1, 5) for _ in range(2)]
    assert results[0].episodes[0].steps == results[1].episodes[0].steps
    assert results[0].episodes[0].simulated_s == results[1].episodes[0].simulated_s


def test_table_has_a_row_per_task() -> None:
    chunks = [{"preprocess": 1.0, "prefix": 2.0, "denoise": 3.0}]
    results = [TaskResult(name, (episode(True, chunks_ms=chunks),)) for name in ("Reach", "Lift")]
    table = success_table(results, "title")
    assert table.row_count == 2
    cells = np.array([list(column.cells) for column in table.columns])
    assert cells[:, 0].tolist() == ["Reach", "100% (1/1)", "21..100", "0%", "2.0 s", "6.0 (6.0)", "1.0+2.0+3.0", "4.0x"]
