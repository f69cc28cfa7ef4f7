"""MuJoCo sims of pi0_control; importing this package registers its Gymnasium environments.

``gymnasium.make("sims:pi0_control/Reach-v0")`` needs no import of its own.
"""

import gymnasium as gym

from sims.tasks import TASKS

for _task in TASKS.values():
    if _task.env_id not in gym.registry:
        gym.register(
            _task.env_id,
            entry_point="sims.tabletop_env:TabletopEnv",
            kwargs={"task": _task.name},
            max_episode_steps=_task.max_episode_steps,
        )
