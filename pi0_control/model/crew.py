"""Parts of a computation for threads that take them as they become free.

PyTorch gives every thread an equal share of an operator and waits for the last. A core that is slower than the others,
because other programs or a virtual machine's neighbours use it, slows all of them down. Where there are enough parts,
each thread computes some of them alone instead, as many as it comes to. Who computes a part makes no difference to its
numbers.

Between calls the threads sleep.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from enum import Enum
from functools import cache
from threading import Barrier, Lock
from typing import NamedTuple, TypeVar, cast

import torch

Result = TypeVar("Result")
_MAKING = Lock()


class Stop(Enum):
    """What a part yields where another thread may go on with it."""

    PASS = "go on when a thread is free"
    MEET = "go on when all parts have met here or are done"


Part = Generator[Stop, None, Result]


def in_one_go(compute: Callable[[], Result]) -> Part[Result]:
    """A part that stops nowhere, once a thread has taken it."""
    yield Stop.PASS
    return compute()


def are_enough(parts: int) -> bool:
    """Whether so many parts are for threads that each compute alone."""
    return 1 < torch.get_num_threads() <= parts


def parts_wanted(rows: int, least: int) -> int:
    """How many parts keep all threads busy; 1 if so many rows would leave fewer than ``least`` in each."""
    wanted = 2 * torch.get_num_threads()
    return wanted if rows >= wanted * least else 1


@torch.no_grad()
def run_parts(parts: Sequence[Part[Result]], even_few: bool = False) -> list[Result]:
    """The results of all parts: by as many threads as PyTorch has, or one after the other if they are not enough.

    ``even_few`` has threads do two parts or more that are fewer than threads: those that only one computes anyway.
    """
    threads = torch.get_num_threads()
    by_crew = are_enough(len(parts)) or (even_few and threads > 1 and len(parts) > 1)
    if not by_crew:
        return _in_turns(parts)
    with _MAKING:
        crew = _crew(threads)
    return crew.run(parts)


class _Step(NamedTuple):
    """How far a part has come: where it stopped, or None and its result."""

    stop: Stop | None
    result: object


def _go_on(part: Part[Result]) -> _Step:
    try:
        return _Step(next(part), None)
    except StopIteration as end:
        return _Step(None, end.value)


def _in_turns(parts: Sequence[Part[Result]]) -> list[Result]:
    """In this thread, each as far as it comes without the others."""
    results: list[object] = [None] * len(parts)
    left = dict(enumerate(parts))
    while left:
        for index, part in list(left.items()):
            while (step := _go_on(part)).stop is Stop.PASS:
                pass
            if step.stop is None:
                results[index] = step.result
                del left[index]
    return cast(list[Result], results)


class _Crew:
    """Threads, each of which computes PyTorch's operators alone.

    To be made in a new thread, for which PyTorch has the number of all threads to come; what a thread is given becomes
    that number, and is given back here.
    """

    def __init__(self, threads: int) -> None:
        of_others = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, "pi0-crew", _compute_alone)
        all_there = Barrier(threads)
        try:
            wait([self._pool.submit(all_there.wait) for _ in range(threads)])
        except RuntimeError:  # one cannot be started, and the others wait for it
            all_there.abort()
            self._pool.shutdown()
            raise
        finally:
            torch.set_num_threads(of_others)

    def run(self, parts: Sequence[Part[Result]]) -> list[Result]:
        """As :func:`run_parts`; an error in a part is raised when no thread is at work any more."""
        results: list[object] = [None] * len(parts)
        is_inference = torch.is_inference_mode_enabled()
        running: dict[Future[_Step], int] = {}

        def send(index: int) -> None:
            running[self._pool.submit(_take_part, parts[index], is_inference)] = index

        meeting: list[int] = list(range(len(parts)))
        try:
            while meeting or running:
                if not running:
                    for index in sorted(meeting):
                        send(index)
                    meeting.clear()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step, index = future.result(), running.pop(future)
                    if step.stop is None:
                        results[index] = step.result
                    elif step.stop is Stop.MEET:
                        meeting.append(index)
                    else:
                        send(index)
        finally:
            for future in running:  # after an error; none otherwise
                future.cancel()
            wait(running)
        return cast(list[Result], results)


def _compute_alone() -> None:
    """From now on, this thread shares its operators with no other."""
    torch.get_num_threads()  # a thread takes PyTorch's number when it is first asked, even after it was given its own
    torch.set_num_threads(1)


def _take_part(part: Part[Result], is_inference: bool) -> _Step:
    """In a thread of the crew, which knows nothing of its caller's modes."""
    with torch.inference_mode() if is_inference else torch.no_grad():
        return _go_on(part)


@cache
def _crew(threads: int) -> _Crew:
    with ThreadPoolExecutor(1) as maker:
        return maker.submit(_Crew, threads).result()
