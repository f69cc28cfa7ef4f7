"""Where episodes are played: one after another in this process, or in several at a time with batched inference."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np

from pi0_control.errors import ConfigError, Pi0Error
from pi0_control.policy import Policy
from pi0_control.types import ActionChunk, Observation
from sims.episode import EpisodeResult
from sims.simulator import Job, Noise, PolicyShape, Prefix, Simulator

STOP_S = 2.0


class Pool(Protocol):
    """Plays episodes."""

    def play(self, jobs: Iterable[Job], policy: Policy | None = None) -> Iterator[EpisodeResult]:
        """Results as episodes end; ``jobs`` is asked for the next only when there is room for it."""

    def close(self) -> None:
        """Free environments and processes."""


def open_pool(parallel: int) -> Pool:
    """A pool for so many episodes at a time.

    Raises:
        ConfigError: fewer than one.
    """
    if parallel < 1:
        raise ConfigError(f"--parallel is {parallel}; expected 1 or more.")
    return LocalPool() if parallel == 1 else WorkerPool(parallel)


class LocalPool:
    """Plays in this process, one episode after another."""

    def __init__(self) -> None:
        self._simulator = Simulator()

    def play(self, jobs: Iterable[Job], policy: Policy | None = None) -> Iterator[EpisodeResult]:
        """Results in the order of the jobs; each restarts the policy's noise from its seed."""
        shape = PolicyShape.of(policy) if policy is not None else None

        def ask(observation: Observation, noise: Noise, prefix: Prefix) -> ActionChunk:
            assert policy is not None
            return policy.infer(observation, noise=noise, prefix=prefix)

        for job in jobs:
            if policy is not None:
                policy.reset(job.seed)
            yield self._simulator.play(job, shape, ask)

    def close(self) -> None:
        """Free the environment."""
        self._simulator.close()


class WorkerPool:
    """Plays in worker processes, which simulate and render; a policy is inferred here, for all of them in one batch.

    Inference waits until every episode under way needs a chunk or has ended, so what is inferred together, and with it
    every rounding, follows from the jobs and the number of workers and not from who was faster. Scenes and noise are
    those of one episode at a time; results agree up to the rounding of batched inference. A policy that draws noise of
    its own, such as a server's, does so for all episodes together: that too follows from jobs and number of workers.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._processes: dict[Connection, BaseProcess] = {}
        self._is_amid_run = False
        self._start()

    def _start(self) -> None:
        context: ForkServerContext | SpawnContext = get_context("spawn")  # a fork would share OpenGL and threads
        if "forkserver" in get_all_start_methods():
            context = get_context("forkserver")
            context.set_forkserver_preload([__name__])  # imports once for all workers
        for _ in range(self._workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # or its end would not be noticed
            self._processes[ours] = process
        for pipe in self._processes:
            self._receive(pipe)  # ready, so that the first episodes take no longer than the rest

    def play(self, jobs: Iterable[Job], policy: Policy | None = None) -> Iterator[EpisodeResult]:
        """Results as episodes end; a worker whose episode ended takes the next job at once.

        After a run that was not played to its end, by an error or because nobody asked on, the workers are new ones.

        Raises:
            Pi0Error: what went wrong in a worker, or a worker died.
        """
        queue, shape = iter(jobs), PolicyShape.of(policy) if policy is not None else None
        if self._is_amid_run:  # what the workers still say is of that run
            self.close()
            self._start()
        self._is_amid_run = True
        playing: dict[Connection, Job] = {}
        asking: dict[Connection, tuple[Observation, Noise, Prefix]] = {}

        def begin(pipe: Connection) -> None:
            playing.pop(pipe, None)
            job = next(queue, None)
            if job is not None:
                if policy is not None:
                    policy.reset(job.seed)
                playing[pipe] = job
                self._send(pipe, (job, shape))

        for pipe in self._processes:
            begin(pipe)
        while playing:
            ready = wait([pipe for pipe in playing if pipe not in asking])
            for pipe in [pipe for pipe in playing if pipe in ready]:
                message = self._receive(pipe)
                if isinstance(message, EpisodeResult):
                    yield message
                    begin(pipe)
                else:
                    asking[pipe] = message
            if policy is not None and asking and len(asking) == len(playing):
                self._answer(policy, dict(sorted(asking.items(), key=lambda item: playing[item[0]].seed)))
                asking.clear()
        self._is_amid_run = False

    def close(self) -> None:
        """End the workers, also those amid an episode."""
        for pipe in self._processes:
            pipe.close()
        stop_s = time.monotonic() + STOP_S
        for process in self._processes.values():
            process.join(max(0.0, stop_s - time.monotonic()))
            process.terminate()
            process.join()
        self._processes.clear()

    def _answer(self, policy: Policy, asking: dict[Connection, tuple[Observation, Noise, Prefix]]) -> None:
        observations, noises, prefixes = zip(*asking.values(), strict=True)
        noise = None if noises[0] is None else np.stack(noises)
        chunks = policy.infer_batch(observations, noise=noise, prefixes=prefixes)
        for pipe, chunk in zip(asking, chunks, strict=True):
            self._send(pipe, replace(chunk, timing_ms={}))  # the batch's, not what one inference costs

    def _send(self, pipe: Connection, message: Any) -> None:
        try:
            pipe.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death(pipe) from error

    def _receive(self, pipe: Connection) -> Any:
        try:
            message = pipe.recv()
        except (EOFError, OSError) as error:  # the latter in the midst of a message
            raise self._death(pipe) from error
        if isinstance(message, Exception):
            raise message
        return message

    def _death(self, pipe: Connection) -> Pi0Error:
        process = self._processes[pipe]
        process.join(STOP_S)
        hint = "; try fewer with --parallel" if (process.exitcode or 0) < 0 else ""  # killed, as for lack of memory
        return Pi0Error(f"A worker process died (exit code {process.exitcode}){hint}.")


def _work(pipe: Connection) -> None:
    """A worker process: plays what comes until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the main one decides
    os.environ.setdefault("LP_NUM_THREADS", "1")  # software rendering: a process a core, not its threads as well

    def ask(observation: Observation, noise: Noise, prefix: Prefix) -> ActionChunk:
        pipe.send((observation, noise, prefix))
        chunk: ActionChunk = pipe.recv()
        return chunk

    with closing(Simulator()) as simulator:
        try:
            pipe.send("ready")
            while True:
                job, shape = pipe.recv()
                try:
                    pipe.send(simulator.play(job, shape, ask))
                except (Pi0Error, OSError) as error:
                    pipe.send(error)
        except (EOFError, ConnectionError):
            return
