import json
import math
from dataclasses import replace

import numpy as np
import pytest

from sims.episode import EpisodeResult, Play, Setting
from sims.evaluate import RunResult, compare, count_swaps, evaluate_run, mcnemar_p, wilson_interval, write_results
from sims.pool import LocalPool
from sims.simulator import Job
from sims.smoothness import Smoothness

SETTING = Setting("expert", "Reach")


def episode(is_success: bool, **changes) -> EpisodeResult:
    values = {"seed": 1, "prompt": "touch the red block", "wrong_object": False, "steps": 40, "simulated_s": 2.0}
    return EpisodeResult(**{**values, "is_success": is_success, "wall_s": 0.5, **changes})


def run(policy: str, outcomes: list[bool], **changes) -> RunResult:
    episodes = tuple(episode(is_success, seed=seed) for seed, is_success in enumerate(outcomes))
    return RunResult(Setting(policy, **changes), episodes, wall_s=1.0)


@pytest.mark.parametrize(
    ("successes", "count", "interval"),
    [(168, 180, (0.887, 0.961)), (0, 20, (0.0, 0.161)), (20, 20, (0.839, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson_interval(successes, count, interval) -> None:
    assert wilson_interval(successes, count) == pytest.approx(interval, abs=1e-3)


def test_wilson_interval_solves_its_equation() -> None:
    for bound in wilson_interval(13, 20):
        assert abs(13 / 20 - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / 20))


def test_mcnemar_p_is_the_chance_of_such_a_split_or_a_worse_one() -> None:
    assert mcnemar_p(0, 0) == mcnemar_p(7, 7) == 1.0
    assert mcnemar_p(0, 10) == mcnemar_p(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar_p(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar_p(2000, 1000) < 1e-60


def test_summary_counts_episodes_and_takes_percentiles_of_chunks() -> None:
    chunks = [{"preprocess": 1.0, "prefix": 2.0, "denoise": float(d)} for d in range(1, 102)]
    result = RunResult(SETTING, (episode(True, chunks_ms=chunks), episode(False, wrong_object=True)), wall_s=1.0)
    figures = result.summary()
    assert (figures["success_rate"], figures["wrong_object_rate"], figures["mean_episode_steps"]) == (0.5, 0.5, 40)
    assert figures["real_time_factor"] == pytest.approx(4.0)
    assert figures["chunk_s"]["denoise"] == pytest.approx({"median": 0.051, "p95": 0.096})
    assert figures["chunk_s"]["total"]["median"] == pytest.approx(0.054)
    assert figures["chunk_total_ms"][:2] == [4.0, 5.0]


def test_a_stage_that_not_every_inference_had_counts_where_it_was() -> None:
    chunks = [{"all": 1.0}, {"all": 3.0, "queue": 2.0}, {"all": 2.0, "queue": 4.0}]
    figures = RunResult(SETTING, (episode(True, chunks_ms=chunks),), wall_s=1.0).summary()
    medians = {stage: times["median"] for stage, times in figures["chunk_s"].items()}
    assert medians == pytest.approx({"total": 0.005, "all": 0.002, "queue": 0.003})


def test_summary_has_the_worst_seam_of_all_and_means_of_the_rest() -> None:
    smooth = [Smoothness(10.0, (0.1, 0.4), 0.0), Smoothness(30.0, (0.2,), 0.5), Smoothness(20.0)]
    result = RunResult(SETTING, tuple(episode(True, smoothness=each) for each in smooth), wall_s=1.0)
    expected = {"jerk_rad_s3": 20.0, "worst_seam_rad": 0.4, "p95_seam_rad": 0.38, "hold_s": 0.5 / 3}
    assert result.summary()["smoothness"] == pytest.approx(expected)
    still = RunResult(SETTING, (episode(True),), wall_s=1.0).summary()["smoothness"]
    assert (still["worst_seam_rad"], still["p95_seam_rad"]) == (None, None)


def test_ways_to_play_are_not_taken_for_one_another() -> None:
    plays = Play(), Play("rtc", 4)
    results = [run("mini", [True], play=plays[0]), run("other", [True], play=plays[1])]
    assert compare(results) == []
    assert len({replace(SETTING, play=play).video_name(3) for play in plays}) == 2
    assert [play.words for play in (*plays, Play("async"), Play("sync", 1))] == [
        "", "rtc 4 steps late", "async", "sync 1 steps late",
    ]  # fmt: skip


def test_policies_are_compared_in_the_same_scenes_only() -> None:
    ours, theirs = [True, True, True, False, False], [True, False, False, True, False]
    results = [run("mini", ours), run("mini", ours, task="Lift"), run("expert", theirs), run("random", ours[:2])]
    comparison, *others = compare(results)
    assert not others
    assert (comparison.policy, comparison.against, comparison.task) == ("mini", "expert", "Reach")
    counts = comparison.both, comparison.only_policy, comparison.only_against, comparison.neither
    assert counts == (1, 2, 1, 1)
    assert comparison.p_value == 1.0


def test_a_swap_counts_where_the_block_asked_for_was_taken_both_times() -> None:
    def taking(blocks: list[str | None], asked: str, **changes) -> RunResult:
        result = run("mini", [True] * 4, **changes)
        episodes = zip(result.episodes, blocks, strict=True)
        return replace(result, episodes=tuple(replace(e, taken_block=b, target_block=asked) for e, b in episodes))

    swapped = taking(["red", "red", None, "blue"], "red", instruction="swapped", masked_cameras=("left",))
    sighted = taking(["green"] * 4, "green")
    plain = taking(["green", "red", "green", "green"], "green", masked_cameras=("left",))
    assert count_swaps([swapped, sighted]) == []
    (count,) = count_swaps([swapped, sighted, plain])
    assert (count.task, count.obeyed, count.scenes) == ("Reach", 1, 4)


def test_goals_that_differ_are_not_compared() -> None:
    plain = run("mini", [True])
    swapped, shuffled = (replace(plain, setting=Setting("mini", instruction=i)) for i in ("swapped", "shuffled"))
    assert compare([swapped, plain]) == []
    assert [(each.policy, each.against) for each in compare([shuffled, plain])] == [(shuffled.setting.label, "mini")]


def test_expert_episodes_are_filmed_and_written(tmp_path) -> None:
    seen: list[EpisodeResult] = []
    videos = tmp_path / "out" / "videos"
    result = evaluate_run(SETTING, None, 2, 100_000, videos=videos, on_episode=seen.append)
    assert tuple(seen) == result.episodes
    assert [entry.seed for entry in seen] == [100_000, 100_001]
    assert result.successes == 2
    assert [entry.target_block == entry.taken_block for entry in seen] == [True, True]
    path = tmp_path / "out" / "results.json"
    write_results(path, [result], {"policy": "expert"})
    written = json.loads(path.read_text())
    assert written["policy"] == "expert"
    (row,) = written["runs"]
    assert (row["policy"], row["suite"], row["task"], row["success_rate"]) == ("expert", "none", "Reach", 1.0)
    first, second = row["episode_results"]
    assert (second["seed"], second["video"]) == (100_001, None)
    assert first["video"] == "videos/expert_none_Reach_100000.mp4"
    assert (path.parent / first["video"]).stat().st_size > 10_000


class ScriptedPool(LocalPool):
    """Episodes of known outcome, several begun before the first ends."""

    def __init__(self, successes: list[bool], ahead: int) -> None:
        self.successes, self.ahead = successes, ahead

    def play(self, jobs, policy=None):
        begun: list[Job] = []
        for job in jobs:
            begun.append(job)
            if len(begun) == self.ahead:
                yield self.end(begun.pop())  # the latest ends first
        while begun:
            yield self.end(begun.pop())

    def end(self, job: Job) -> EpisodeResult:
        is_success = self.successes[job.seed]
        is_filmed = job.video is not None and not (job.only_failure and is_success)
        if is_filmed:
            job.video.parent.mkdir(exist_ok=True)
            job.video.write_bytes(b"film")
        return episode(is_success, seed=job.seed, video=job.video if is_filmed else None)


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_the_first_episodes_and_the_first_further_failures_are_filmed_whoever_ends_first(tmp_path, ahead) -> None:
    successes = [True, False, True, False, True, False, False, False]
    pool = ScriptedPool(successes, ahead)
    result = evaluate_run(Setting("mini"), None, 8, 0, pool=pool, videos=tmp_path, num_videos=2)
    assert [entry.seed for entry in result.episodes if entry.video] == [0, 1, 3, 5]
    assert sorted(tmp_path.iterdir()) == sorted(entry.video for entry in result.episodes if entry.video)
    assert np.array_equal([entry.is_success for entry in result.episodes], successes)
