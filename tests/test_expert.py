import pytest

from sims.evaluate import ExpertActor, RandomActor, evaluate_task
from sims.tabletop_env import TabletopEnv
from sims.tasks import TASKS


@pytest.fixture(autouse=True)
def _blind(monkeypatch) -> None:
    """The expert needs no images; without them an episode takes a tenth of the time."""
    monkeypatch.setattr(TabletopEnv, "observe", lambda env: {"images": {}, "state": env.world.state, "prompt": ""})


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_expert_solves_the_task(task) -> None:
    result = evaluate_task(task, ExpertActor, episodes=25, seed=100_000)
    assert result.successes >= 24
    assert not any(episode.wrong_object for episode in result.episodes)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_chance_does_not(task) -> None:
    result = evaluate_task(task, RandomActor, episodes=25, seed=100_000)
    assert result.successes <= 1
