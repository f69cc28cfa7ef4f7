import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from policy_parts import ARM6, TINY, make_policy

from pi0_control.policy import Pi0Policy, PolicyConfig

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anyone reads Triton: the kernels of a GPU run on the CPU then


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Results that do not depend on how torch splits sums between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy() -> Pi0Policy:
    return make_policy(PolicyConfig.for_robot(ARM6, TINY, num_steps=3))


@pytest.fixture(scope="module")
def saved(policy: Pi0Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policies") / "saved"
    policy.save(directory)
    return directory
