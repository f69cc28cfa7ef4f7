"""The world's law: however many processes share a training, its losses and weights are those of one process."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import LIMIT_S, fork, in_fresh_process
from tiny_training import QUICK, demonstrate, lines, run

from pi0_control.errors import ConfigError
from pi0_control.train.batches import Draws
from pi0_control.train.config import TrainConfig
from pi0_control.train.distributed import World, join_world
from pi0_control.train.flow import FlowStage
from pi0_control.train.run_folder import RunFolder

CONFIG = replace(
    QUICK,
    steps=4,
    grounding_steps=3,
    grounding_batch_size=4,
    validate_every=1,
    checkpoint_every=2,
    freeze=("vision",),
    lora=("language",),
    gradient_checkpointing=True,
    rtc_max_delay=2,
    camera_dropout=0.5,
    crop=0.8,
    saturation_jitter=0.1,
)
FSDP = replace(CONFIG, parallel="fsdp")
TEMPLATES = ("touch the {object} block", "lift the {object} cube")
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def scenario(root: Path) -> None:
    data = root / "data"
    demonstrate(data)
    assert train_together(1, CONFIG, data, root / "one") == [0]
    assert train_together(2, CONFIG, data, root / "ddp") == [0, 0]
    assert train_together(2, FSDP, data, root / "mixed", fail_at=3) == [1, 1]
    often = replace(CONFIG, checkpoint_every=1)
    assert train_together(1, often, data, root / "mixed", fail_at=2, resume=True) == [1]
    assert train_together(2, FSDP, data, root / "mixed", resume=True) == [0, 0]
    assert train_together(2, CONFIG, data, root / "broken", fail_at=2, failing=[1]) == [1, 1]


def train_together(
    size: int,
    config: TrainConfig,
    data: Path,
    out: Path,
    fail_at: int = 0,
    failing: tuple[int, ...] = (0, 1),
    resume: bool = False,
) -> list[int | None]:
    """Exit codes of the ranks of a training; those in ``failing`` fail at this step of theirs with demonstrations."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def train_as(rank: int) -> None:
        variables = TORCHRUN | {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
        os.environ |= variables | {"GLOO_SOCKET_IFNAME": "lo"}
        torch.set_num_threads(1)
        if fail_at and rank in failing:
            fail(fail_at)
        run(config, data, out, grounding_roots=[data], templates=TEMPLATES, resume=resume)

    ranks = [fork(train_as, rank) for rank in range(size)]
    for process in ranks:
        process.join(LIMIT_S)
    return [process.exitcode for process in ranks]


def fail(call: int) -> None:
    """Let this call of the losses of demonstrations, from 1, fail in this process."""
    losses, calls = FlowStage.losses, []

    def failing(stage, learner, draws):
        calls.append(draws)
        if len(calls) == call:
            raise RuntimeError("on purpose")
        return losses(stage, learner, draws)

    FlowStage.losses = failing


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_fresh_process(monkeypatch, scenario, root)
    return root


@pytest.mark.parametrize("name", ["ddp", "mixed"])
@pytest.mark.parametrize("key", ["loss", "validation"])
def test_two_processes_have_the_losses_of_one(runs: Path, name: str, key: str):
    """``mixed`` is FSDP2 with two processes, resumed by one and again by two."""
    expected, got = lines(runs / "one", key), lines(runs / name, key)
    assert len(expected) == 7
    for one, other in zip(expected, got, strict=True):
        assert other.pop("stage") == one.pop("stage")
        assert other.get("validation", other) == pytest.approx(one.get("validation", one), rel=1e-5)


@pytest.mark.parametrize("name", ["ddp", "mixed"])
def test_a_checkpoint_does_not_tell_how_many_wrote_it(runs: Path, name: str):
    one, other = (vars(RunFolder(runs / folder).load()) for folder in ("one", name))
    assert other.pop("settings") == one.pop("settings")
    torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


def test_one_process_writes(runs: Path):
    for name in ("one", "ddp", "mixed"):
        assert len(list((runs / name / "tensorboard").iterdir())) == 1
        assert len(lines(runs / name)) == 7


def test_the_draws_of_the_ranks_are_the_rows_of_one_draw():
    def draw(world: World) -> list:
        draws = Draws(3, 1, 7, world)
        rows = 6 // world.size
        numbers = [draws.normal(rows, 2), draws.uniform(rows), draws.times(rows), draws.integers(9, rows, 3)]
        return [*map(np.asarray, numbers), draws.frames(np.arange(50), 6)]

    ranks = [draw(World(rank, 3)) for rank in range(3)]
    for whole, *parts in zip(draw(World()), *ranks, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_what_torchrun_got_wrong_is_named(monkeypatch: pytest.MonkeyPatch):
    cases = [
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not"),
        ({"RANK": "2"}, "RANK is 2; expected 0 to 1"),
        ({"LOCAL_RANK": "first"}, "whole numbers"),
    ]
    for changes, message in cases:
        with monkeypatch.context() as patch:
            for name, value in (TORCHRUN | changes).items():
                patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
            with pytest.raises(ConfigError, match=message), join_world(CONFIG):
                pass
    with pytest.raises(ConfigError, match="batch_size is 8; expected a multiple of the 3 processes"):
        World(size=3).check_batch("batch_size", 8)
    with pytest.raises(ConfigError, match="parallel is 'both'"):
        replace(CONFIG, parallel="both")
    with pytest.raises(ConfigError, match="compile does not go with parallel 'fsdp'"):
        replace(FSDP, compile=True)
