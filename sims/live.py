"""The tabletop as a robot that runs in time: commands come when they come, and the world goes on regardless."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi0_control.robot import RobotSpec
from sims.tabletop_env import TabletopEnv
from sims.tasks import get_task
from sims.variation import NONE, aspects_of


class LiveTabletop:
    """One episode after another, a servo period at a time; commanded once a control period, it moves as the env does.

    Attributes:
        robot: whose joints are driven.
    """

    def __init__(self) -> None:
        self.robot = RobotSpec.from_yaml("arm6")
        self._env: TabletopEnv | None = None
        self._made_for: tuple[str, str] = ("", "")

    def check(self, task: str, perturb: str) -> None:
        """Raise ConfigError if there is no such task or suite."""
        get_task(task)
        aspects_of(perturb)

    def reset(self, task: str, perturb: str = NONE, seed: int = 0) -> None:
        """Begin the episode that ``TabletopEnv(task, perturb=perturb).reset(seed=seed)`` begins.

        Raises:
            ConfigError: no such task or suite.
        """
        if self._env is None or self._made_for != (task, perturb):
            self.close()
            self._env, self._made_for = TabletopEnv(task, perturb=perturb), (task, perturb)
        self._env.reset(seed=seed)
        self._seed = seed
        self._advances = self._steps = 0
        self._is_fresh = True
        self._is_success = self._has_ended = False

    @property
    def env(self) -> TabletopEnv:
        """The environment of the episode."""
        assert self._env is not None, "reset() comes first"
        return self._env

    @property
    def servo_period_s(self) -> float:
        """What one :meth:`advance` simulates [s]."""
        return self.env.world.servo_period_s

    @property
    def state(self) -> NDArray[np.float32]:
        """Measured joint positions, float32 [D] in the robot's units."""
        return self.env.world.state

    @property
    def set_point(self) -> NDArray[np.float32]:
        """Where the servos drive the joints to now, float32 [D]."""
        return self.env.world.set_point

    @property
    def prompt(self) -> str:
        """What the episode asks for."""
        assert self.env.goal is not None
        return self.env.goal.prompt

    @property
    def episode(self) -> Mapping[str, Any]:
        """``task``, ``perturb``, ``seed``, ``prompt``, ``steps`` (control periods), ``is_success``, ``is_over``.

        An episode is over where the environment ends it or its time is up; the world goes on and is not judged further.
        """
        task, perturb = self._made_for
        return {
            "task": task,
            "perturb": perturb,
            "seed": self._seed,
            "prompt": self.prompt,
            "steps": self._steps,
            "is_success": self._is_success,
            "is_over": self._is_over,
        }

    def images(self) -> Mapping[str, NDArray[np.uint8]]:
        """What the cameras see now, RGB uint8 [H, W, 3] by name."""
        self._refresh()
        return self.env.observe()["images"]

    def aim(self, positions: NDArray[np.floating], duration_s: float | None = None) -> None:
        """Lead the servos to joint targets [D] in ``duration_s``, a control period if None, or as far as limits let."""
        self.env.world.aim(positions, duration_s)

    def advance(self) -> None:
        """Simulate one period of the servos; every control period the episode is judged."""
        self.env.world.advance()
        self._advances += 1
        self._is_fresh = False
        per_step = round(self.robot.dt_s / self.servo_period_s)
        if self._advances % per_step == 0 and not self._is_over:
            self._refresh()
            self._steps = self._advances // per_step
            self._is_success, self._has_ended = self.env.judge()

    def close(self) -> None:
        """Free the environment."""
        if self._env is not None:
            self._env.close()
        self._env = None

    def _refresh(self) -> None:
        """Once per moment only: a second time would change the last bits of what follows."""
        if not self._is_fresh:
            self.env.world.refresh()
        self._is_fresh = True

    @property
    def _is_over(self) -> bool:
        return self._has_ended or self._steps >= self.env.task.max_episode_steps
