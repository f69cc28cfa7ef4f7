"""Plays a policy of random weights in environments of others, and checks the mapping, the agent and the recording.

python tests/third_party.py gym-aloha
python tests/third_party.py metaworld

They pin a MuJoCo older than ours (gym-aloha 0.1.5: below 3.9, Meta-World 3.1.1: 3.3.0), so each needs an environment of
its own: install gym-aloha or metaworld there, then torch, opencv-python, pyyaml, safetensors, sentencepiece and, with
--no-deps, this package. Without a display, set MUJOCO_GL=egl or osmesa.
"""

import argparse
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tiny_policy import tiny_policy

from pi0_control.control import Pi0Agent
from pi0_control.control.adapters import gym_aloha
from pi0_control.control.mapping import Entries, EnvironmentMapping, Layout, Picture
from pi0_control.control.recorder import Recorder, replay
from pi0_control.robot import Joint, RobotSpec

SAWYER = RobotSpec(
    "sawyer_hand",
    tuple(Joint(name, "prismatic", -1, 1, 1, 100, 0) for name in ("hand_x", "hand_y", "hand_z"))
    + (Joint("gripper", "gripper", -1, 1, 4, 60, 0),),
    ("corner",),
    80,
)
SAWYER_LAYOUT = Layout(
    pictures={"corner": Picture("pixels")},
    state=[Entries(SAWYER.joint_names + (None,) * 35, "state")],  # the rest is where the objects are
    action=[Entries(SAWYER.joint_names)],
    prompt="reach the goal",
    rates=SAWYER.joint_names,
)


def make_gym_aloha() -> tuple[gym.Env[Any, Any], RobotSpec, Layout, tuple[str, ...]]:
    import_module("gym_aloha")
    env = gym.make("gym_aloha/AlohaTransferCube-v0", obs_type="pixels_agent_pos")
    return env, RobotSpec.from_yaml("aloha"), gym_aloha(), ("cam_left_wrist", "cam_right_wrist")


def make_metaworld() -> tuple[gym.Env[Any, Any], RobotSpec, Layout, tuple[str, ...]]:
    import_module("metaworld")
    env = gym.make("Meta-World/MT1", env_name="reach-v3", render_mode="rgb_array", camera_name="corner2")
    return gym.wrappers.AddRenderObservation(env, render_only=False), SAWYER, SAWYER_LAYOUT, ()


MAKERS = {"gym-aloha": make_gym_aloha, "metaworld": make_metaworld}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", choices=MAKERS)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    env, robot, layout, optional_cameras = MAKERS[options.package]()
    names = (options.package, "mujoco", "gymnasium", "numpy")
    print(", ".join(f"{name} {version(name)}" for name in names))
    mapping = EnvironmentMapping(layout, robot, env.observation_space, env.action_space)
    observation, _ = env.reset(seed=0)
    start = state = mapping.observation(observation)["state"]
    actions: list[Any] = []
    settings = {"optional_cameras": optional_cameras, "rates": layout.rates}
    policy = tiny_policy(len(robot.joints), robot=robot, **settings)
    agent = Pi0Agent(policy, latency_steps=[0, 1, 2], mapping=mapping)
    with tempfile.TemporaryDirectory() as folder, Recorder(agent, folder) as recorder:
        recorder.reset(seed=0)
        for _ in range(options.steps):
            actions.append(recorder.get_action(observation))
            observation, _, terminated, truncated, _ = env.step(actions[-1])
            state = mapping.observation(observation)["state"]
            if terminated or truncated:
                break
        path = recorder.save()
        assert path is not None
        again = replay(path, agent)
        size_mb = Path(path).stat().st_size / 1e6
    assert np.array_equal(again, actions)
    moved = np.abs(state - start).max()
    assert moved > 0, "nothing moved"
    print(f"{len(actions)} steps, state moved by up to {moved:.3f}, replay identical, {size_mb:.1f} MB recorded")
    env.close()


if __name__ == "__main__":
    main()
