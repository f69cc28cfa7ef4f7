"""MuJoCo sims of pi0_control; importing this package registers its Gymnasium environments.

``gymnasium.make("sims:pi0_control/Reach-v0")`` needs no import of its own.
"""

import os

import gymnasium as gym

from pi0_control.errors import RenderError

try:
    import mujoco  # noqa: F401  loads the OpenGL that MUJOCO_GL names
except (ImportError, AttributeError) as error:
    raise RenderError(
        f"MuJoCo cannot load the OpenGL that MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} names ({error}); unset it, or "
        "install the Debian packages libegl1 and libgl1-mesa-dri for egl, libosmesa6 for osmesa."
    ) from error

from sims.tasks import TASKS

for _task in TASKS.values():
    if _task.env_id not in gym.registry:
        gym.register(
            _task.env_id,
            entry_point="sims.tabletop_env:TabletopEnv",
            kwargs={"task": _task.name},
            max_episode_steps=_task.max_episode_steps,
        )
