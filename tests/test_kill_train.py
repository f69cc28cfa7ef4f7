"""A training that is killed again and again ends as if it had never been: SIGKILL at random moments, 20 times."""

import contextlib
import multiprocessing
import random
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from processes import LIMIT_S, fork, in_fresh_process
from tiny_training import QUICK, demonstrate, lines, run

from pi0_control.policy.policy import Pi0Policy
from pi0_control.train.run_folder import RunFolder
from pi0_control.train.trainer import Trainer

KILLS = 20
CONFIG = replace(QUICK, steps=16, grounding_steps=8, grounding_batch_size=4, checkpoint_every=2)
TEMPLATES = ("touch the {object} block",)


def test_a_training_survives_being_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    in_fresh_process(monkeypatch, scenario, tmp_path)


def scenario(root: Path) -> None:
    torch.set_num_threads(1)  # a process without threads can fork
    data, whole, torn = root / "data", root / "whole", root / "torn"
    demonstrate(data)
    setup_s, step_s = measure(data, whole)
    moments, kills = random.Random(0), 0
    while kills < KILLS:
        steps = max(0, moments.randint(-1, 5))  # none: while it reads the data
        process, reports = start(data, torn)
        wait_for(reports, steps)
        process.join(moments.uniform(0, 2 * step_s if steps else setup_s))
        process.kill()
        process.join(LIMIT_S)
        look_at(torn)
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:  # it came to its end between the kills: once more
            assert process.exitcode == 0
            compare(torn, whole)
            shutil.rmtree(torn)
    process, _ = start(data, torn)
    process.join(LIMIT_S)
    compare(torn, whole)


def start(data: Path, out: Path) -> tuple[BaseProcess, Connection]:
    """The one command that begins a training or goes on with it, and what reports the beginning of each step."""
    reports, reporter = multiprocessing.Pipe(duplex=False)

    def train() -> None:
        train_step = Trainer._train_step

        def reported(*args):
            reporter.send(None)
            return train_step(*args)

        Trainer._train_step = reported
        options = {"grounding_roots": [data], "templates": TEMPLATES, "cache_dir": out.with_suffix(".cache")}
        run(CONFIG, data, out, resume=True, **options)

    process = fork(train)
    reporter.close()  # this copy, so that the end of the process ends the reports
    return process, reports


def wait_for(reports: Connection, steps: int) -> None:
    """Until a training has begun so many steps or has ended."""
    with contextlib.suppress(EOFError):
        for _ in range(steps):
            reports.recv()


def measure(data: Path, out: Path) -> tuple[float, float]:
    """Train without being killed; seconds of reading the data and of a step with all that is written."""
    began = time.monotonic()
    process, reports = start(data, out)
    wait_for(reports, 1)
    read = time.monotonic()
    process.join(LIMIT_S)
    assert process.exitcode == 0
    return read - began, (time.monotonic() - read) / (CONFIG.steps + CONFIG.grounding_steps)


def look_at(out: Path) -> None:
    """Whatever has its name can be read."""
    if (out / "checkpoint.pt").exists():
        RunFolder(out).load()
    if (out / "policy.json").exists():
        Pi0Policy.from_pretrained(out)


def compare(torn: Path, whole: Path) -> None:
    """Losses, scores and weights, bit by bit."""
    for key in ("loss", "validation"):
        assert lines(torn, key) == lines(whole, key)
    got, expected = (vars(RunFolder(out).load()) for out in (torn, whole))
    assert got.pop("settings") == expected.pop("settings")
    torch.testing.assert_close(got, expected, atol=0, rtol=0)
    policies = [Pi0Policy.from_pretrained(out).model.state_dict() for out in (torn, whole)]
    torch.testing.assert_close(*policies, atol=0, rtol=0)
