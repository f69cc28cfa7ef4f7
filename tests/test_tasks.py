import numpy as np
import pytest

from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec
from sims.scene import BLOCK_HALF_M, TRAY_CENTRE_M
from sims.tasks import TASKS, get_task
from sims.world import TabletopWorld


@pytest.fixture
def world() -> TabletopWorld:
    world = TabletopWorld(RobotSpec.from_yaml("arm6"))
    world.reset(np.random.default_rng(0))
    return world


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="No task 'Juggle'; the tasks are Reach, Lift, PickPlace, Stack"):
        get_task("Juggle")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_goal_is_told_in_several_wordings_and_names_its_block(task) -> None:
    rng = np.random.default_rng(0)
    goals = [task.sample_goal(rng, ("red", "green", "blue")) for _ in range(200)]
    assert len({goal.prompt for goal in goals}) > 6
    assert {goal.block for goal in goals} == {"red", "green", "blue"}
    assert all(goal.block in goal.prompt and goal.block != goal.onto for goal in goals)
    assert all((goal.onto is not None) == (task.name == "Stack") for goal in goals)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_no_goal_holds_in_a_fresh_scene(task, world) -> None:
    rng = np.random.default_rng(0)
    assert not any(task.is_done(world, task.sample_goal(rng, world.blocks)) for _ in range(20))


def test_pick_place_is_done_when_the_named_block_lies_in_the_tray(world) -> None:
    task = TASKS["PickPlace"]
    world.place_block("red", np.array([*TRAY_CENTRE_M, BLOCK_HALF_M + 0.005]))
    assert task.is_done(world, task.goal("red", "blue", task.wordings[0]))
    assert not task.is_done(world, task.goal("green", "blue", task.wordings[0]))


def test_stack_is_done_when_the_named_block_rests_on_the_other(world) -> None:
    task = TASKS["Stack"]
    world.place_block("red", world.block_position("blue") + [0, 0, 2 * BLOCK_HALF_M - 1e-4])
    assert task.is_done(world, task.goal("red", "blue", task.wordings[0]))
    assert not task.is_done(world, task.goal("blue", "red", task.wordings[0]))
    assert not task.is_done(world, task.goal("red", "green", task.wordings[0]))
