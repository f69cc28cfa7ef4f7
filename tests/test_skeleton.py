"""A skeleton has all of a model but the values, and brings nothing along that others may not bear."""

import subprocess
import sys

import pytest
import torch
from tiny_model import TINY, TINY_PI05, make_model

from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import Pi0
from pi0_control.model.skeleton import skeletons


@pytest.mark.parametrize("config", [TINY, TINY_PI05, Pi0Config.preset("mini")])
def test_names_shapes_and_dtypes_are_the_models(config: Pi0Config) -> None:
    with skeletons():
        bones = Pi0(config).state_dict()
    whole = make_model(config).state_dict()
    assert all(tensor.is_meta for tensor in bones.values())
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in bones.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in whole.items()
    }
    assert not any(tensor.is_meta for tensor in Pi0(config).state_dict().values())
    assert torch.randn(10).unique().numel() > 1


ACT = """
import sys
import gymnasium as gym
from pi0_control import Pi0Agent
env = gym.make("sims:pi0_control/Lift-v0")
observation, _ = env.reset(seed=0)
agent = Pi0Agent.from_pretrained("mini")
agent.reset(seed=0)
env.step(agent.get_action(observation))
sys.exit("torch._dynamo" in sys.modules)
"""


def test_loading_a_policy_and_asking_it_needs_no_compiler() -> None:
    """Its import takes a second, and with another's renderer of Mesa in the process Triton's would end it."""
    done = subprocess.run([sys.executable, "-c", ACT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
