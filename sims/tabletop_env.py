"""The tasks as Gymnasium environments: three camera images, joint state and an instruction in, joint targets out."""

import string
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import CustomSpaceError
from gymnasium.vector.utils import create_shared_memory
from numpy.typing import NDArray

from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec
from sims.rendering import CameraRenderer, open_viewer
from sims.tasks import Goal, get_task
from sims.variation import NONE, aspects_of
from sims.world import TabletopWorld

IMAGE_SIZE = 224
PROMPT_LENGTH = 96
RENDER_SHAPE = (480, 640)
TAKEN_M = 0.05
"""Height of a grasped block's centre from which it counts as taken."""


class PromptSpace(gym.spaces.Text):
    """A Text that AsyncVectorEnv's shared memory refuses: Gymnasium 1.4 would hand out stale texts from it."""


@create_shared_memory.register(PromptSpace)
def _refuse_shared_memory(space: PromptSpace, n: int = 1, ctx: Any = None) -> Any:
    raise CustomSpaceError("Prompts cannot live in shared memory; pass shared_memory=False to AsyncVectorEnv.")


class TabletopEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """One task on the table.

    Observation: ``images`` (uint8 [224, 224, 3] by camera), ``state`` (float32 [7]: six joints [rad], gripper
    opening 0..1) and ``prompt`` (the instruction). Action: float32 [7], joint targets in the same units, followed at
    the robot's velocity limits for one control period (20 Hz). The reward is 1 on success, which ends the episode.
    ``info`` carries ``is_success``, ``taken_block`` (the first block that the gripper took or, in Reach, touched),
    ``wrong_object`` (it took one that is not to be moved), ``target_block``, and ``time_s``, the simulated time since
    reset.

    Args:
        task: one of :data:`sims.tasks.TASKS`.
        render_mode: ``rgb_array`` (480x640 with shadows) or ``human`` (MuJoCo's viewer), for people.
        perturb: one of :data:`sims.variation.SUITES`; what differs from the plain scene. The blocks of a seed lie
            in the same places in every suite.

    ``reset`` takes ``options={"goal": Goal}`` to ask for one goal in a seeded scene.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 20}  # noqa: RUF012  Gymnasium's own form

    def __init__(self, task: str = "Reach", render_mode: str | None = None, perturb: str = NONE) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(f"render_mode {render_mode!r} is not one of {self.metadata['render_modes']}.")
        self.task = get_task(task)
        self.aspects = aspects_of(perturb)
        self.render_mode = render_mode
        self.robot = RobotSpec.from_yaml("arm6")
        self.world = TabletopWorld(self.robot)
        image = gym.spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        joints = gym.spaces.Box(self.robot.lower, self.robot.upper, dtype=np.float32)
        margin = np.float32(0.1)  # measured positions overshoot the commanded range a little
        self.observation_space = gym.spaces.Dict(
            {
                "images": gym.spaces.Dict(dict.fromkeys(self.robot.cameras, image)),
                "state": gym.spaces.Box(self.robot.lower - margin, self.robot.upper + margin, dtype=np.float32),
                "prompt": PromptSpace(PROMPT_LENGTH, charset=string.ascii_letters + string.digits + " .,'-"),
            }
        )
        self.action_space = joints
        self.goal: Goal | None = None
        self._cameras: CameraRenderer | None = None  # made when first needed, in the process and thread that renders
        self._pretty: CameraRenderer | None = None
        self._viewer: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A new scene, goal and start pose drawn from ``seed``."""
        super().reset(seed=seed)
        self.world.reset(self.np_random)
        goal = self.task.sample_goal(self.np_random, self.world.blocks)
        if "wording" in self.aspects:
            goal = self.task.goal(goal.block, goal.onto or "", str(self.np_random.choice(self.task.unseen_wordings)))
        self.world.vary(self.aspects, self.np_random)
        self.goal = self._checked((options or {}).get("goal", goal))
        self._held_steps = 0
        self._taken_block: str | None = None
        self._wrong_object = False
        self._show()
        return self.observe(), self._info(is_success=False)

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Drive towards ``action`` for one control period."""
        if self.goal is None:
            raise gym.error.ResetNeeded("Call reset() before step().")
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise ConfigError(f"Action {action} is not {len(self.robot.joints)} finite joint targets.")
        with self._viewer.lock() if self._viewer else nullcontext():
            self.world.drive(action)
        success, ended = self.judge()
        self._show()
        return self.observe(), float(success), ended, False, self._info(is_success=success)

    def judge(self) -> tuple[bool, bool]:
        """After every control period: whether the goal is reached, and whether the episode ends."""
        assert self.goal is not None
        taken = self._taken_blocks()
        self._taken_block = self._taken_block or next(iter(taken), None)
        self._wrong_object |= bool(set(taken) - {self.goal.block})
        done = self.task.is_done(self.world, self.goal)
        self._held_steps = self._held_steps + 1 if done else 0
        touched_wrong = self._wrong_object and self.task.name == "Reach"
        success = self._held_steps >= self.task.hold_steps and not touched_wrong
        return success, success or touched_wrong

    def observe(self) -> dict[str, Any]:
        """The observation of this moment."""
        assert self.goal is not None
        if self._cameras is None:
            self._cameras = CameraRenderer(self.world.model, IMAGE_SIZE, IMAGE_SIZE)
        images = {name: self._cameras.render(self.world.data, name) for name in self.robot.cameras}
        return {"images": images, "state": self.world.state, "prompt": self.goal.prompt}

    def render(self) -> NDArray[np.uint8] | None:
        """The scene as a person would look at it, uint8 [480, 640, 3]; None unless ``render_mode="rgb_array"``."""
        return self.render_camera("scene") if self.render_mode == "rgb_array" else None

    def render_camera(self, camera: str) -> NDArray[np.uint8]:
        """What any camera of the scene sees, in the quality made for people, uint8 [480, 640, 3]."""
        if self._pretty is None:
            self._pretty = CameraRenderer(self.world.model, *RENDER_SHAPE, pretty=True)
        return self._pretty.render(self.world.data, camera)

    def close(self) -> None:
        """Free renderers and the viewer."""
        for resource in (self._cameras, self._pretty, self._viewer):
            if resource is not None:
                resource.close()
        self._cameras = self._pretty = self._viewer = None

    def _checked(self, goal: Goal) -> Goal:
        """The goal, if this scene has its blocks and the task needs as many."""
        named = [goal.block] if self.task.name != "Stack" else [goal.block, goal.onto]
        if not set(named) <= set(self.world.blocks) or (goal.onto is not None and self.task.name != "Stack"):
            raise ConfigError(f"{goal} is no goal of {self.task.name}; the blocks are {', '.join(self.world.blocks)}.")
        return goal

    def _taken_blocks(self) -> list[str]:
        """Blocks that the gripper holds off the table or, in Reach, touches."""
        if self.task.name == "Reach":
            return sorted(self.world.touched_blocks())
        return [b for b in self.world.blocks if self.world.is_grasped(b) and self.world.block_position(b)[2] > TAKEN_M]

    def _info(self, *, is_success: bool) -> dict[str, Any]:
        assert self.goal is not None
        return {
            "is_success": is_success,
            "wrong_object": self._wrong_object,
            "taken_block": self._taken_block,
            "target_block": self.goal.block,
            "time_s": self.world.time_s,
        }

    def _show(self) -> None:
        if self.render_mode != "human":
            return
        if self._viewer is None:
            self._viewer = open_viewer(self.world.model, self.world.data, "scene")
        self._viewer.sync()
