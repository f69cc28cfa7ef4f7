"""The policy that ships, in closed loop; the figures of the README come from more episodes than these."""

from contextlib import closing

import pytest

from pi0_control import Pi0Agent, Pi0Policy
from pi0_control.policy.pretrained import find_policy
from sims.episode import Setting, run_episode
from sims.evaluate import evaluate_run
from sims.tabletop_env import TabletopEnv


@pytest.fixture(scope="module")
def policy() -> Pi0Policy:
    return Pi0Policy.from_pretrained("mini")


def test_bundled_files_are_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in find_policy("mini").iterdir()) < 25e6


@pytest.mark.parametrize(("task", "at_least"), [("Reach", 7), ("Lift", 7), ("PickPlace", 6), ("Stack", 5)])
def test_mini_works(policy, task, at_least) -> None:
    result = evaluate_run(Setting("mini", task), policy, 8, 200_000)
    assert result.successes >= at_least
    assert all(episode.chunks_ms for episode in result.episodes)


def test_the_words_decide_which_block_is_touched(policy) -> None:
    with closing(TabletopEnv("Reach")) as env:
        goals = [env.task.goal(block, "", "touch the {block} block") for block in env.world.blocks]
        successes = [run_episode(env, Pi0Agent(policy), 200_100, goal=goal).is_success for goal in goals]
    assert sum(successes) >= 2  # the same scene each time: a policy that ignores the words gets one of three
