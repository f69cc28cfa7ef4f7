"""Processes for tests: one fresh process that has imported torch, and cheap forks of it."""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

LIMIT_S = 600  # a hang is a failure, not a stuck test run


def in_fresh_process(monkeypatch: pytest.MonkeyPatch, scenario: Callable[..., Any], *args: Any) -> None:
    """Run a function of a test module in a process without threads, which may therefore fork."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    process = multiprocessing.get_context("spawn").Process(target=_lead, args=(scenario, *args))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    assert process.exitcode == 0, "the traceback is on stderr"


def _lead(scenario: Callable[..., Any], *args: Any) -> None:
    for module in ("torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard"):
        importlib.import_module(module)  # else each fork does, for seconds
    os.setsid()  # the forks end with it
    scenario(*args)


def fork(target: Callable[..., Any], *args: Any) -> BaseProcess:
    """A running copy of this process; the caller waits for it."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process
