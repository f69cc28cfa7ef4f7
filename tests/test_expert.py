import pytest

from sims.episode import Setting
from sims.evaluate import evaluate_run
from sims.tasks import TASKS


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_expert_solves_the_task(task) -> None:
    result = evaluate_run(Setting("expert", task.name), None, 25, 100_000)
    assert result.successes >= 24
    assert not any(episode.wrong_object for episode in result.episodes)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_chance_does_not(task) -> None:
    result = evaluate_run(Setting("random", task.name), None, 25, 100_000)
    assert result.successes <= 1
