from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Event, Thread

import pytest
import torch

from pi0_control.model.crew import Part, Stop, _crew, are_enough, in_one_go, parts_wanted, run_parts


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format, autouse=True)
def threads(request: pytest.FixtureRequest, one_thread: None) -> int:
    """Restored by the fixture that it begins with."""
    torch.set_num_threads(request.param)
    return request.param


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_come_in_the_order_of_the_parts(count: int) -> None:
    assert run_parts([in_one_go(lambda index=index: index) for index in range(count)]) == list(range(count))


def test_parts_wait_for_one_another_where_they_meet() -> None:
    came: list[tuple[str, int]] = []

    def part(name: str, meetings: int) -> Part[list[int]]:
        seen = []
        for meeting in range(meetings):
            came.append((name, meeting))
            yield Stop.PASS
            yield Stop.MEET
            seen.append(sum(which == meeting for _, which in came))
        return seen

    four = [part(name, 3) for name in "abcd"]
    assert run_parts([*four, part("short", 1)]) == [[5, 4, 4]] * 4 + [[5]]


def test_a_slow_part_holds_up_none_but_itself(threads: int) -> None:
    last_is_done = Event()

    def slow() -> bool:
        return last_is_done.wait(timeout=60 if threads > 1 else 0)

    others = [in_one_go(lambda: None) for _ in range(7)]
    assert run_parts([in_one_go(slow), *others, in_one_go(last_is_done.set)])[0] == (threads > 1)


def test_every_thread_computes_alone_and_others_as_before(threads: int) -> None:
    inside = run_parts([in_one_go(torch.get_num_threads) for _ in range(threads)])
    assert inside == [1] * threads
    outside = []
    thread = Thread(target=lambda: outside.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *outside] == [threads, threads]


def test_making_a_crew_leaves_every_thread_its_number() -> None:
    _crew.cache_clear()
    with ThreadPoolExecutor(1) as worker:
        worker.submit(torch.get_num_threads).result()  # or it would take the number of all when it is first asked
        worker.submit(torch.set_num_threads, 2).result()
        torch.set_num_threads(4)
        worker.submit(run_parts, [in_one_go(lambda: None) for _ in range(2)]).result()
        assert worker.submit(torch.get_num_threads).result() == 2
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result() == 4
    assert torch.get_num_threads() == 4


def test_threads_that_cannot_be_had_are_not_waited_for(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = [], Thread.start

    def refuse(thread: Thread) -> None:
        if thread.name.startswith("pi0-crew"):
            if started:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        start(thread)

    _crew.cache_clear()
    monkeypatch.setattr(Thread, "start", refuse)
    if threads > 1:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            run_parts([in_one_go(lambda: None) for _ in range(threads)])
        assert not started[0].is_alive()
    monkeypatch.undo()
    assert run_parts([in_one_go(lambda: "fine") for _ in range(threads)]) == ["fine"] * threads
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_parts_have_no_gradient_and_may_write_into_what_the_caller_made(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    with mode():
        buffer = torch.zeros(4)

        def write(index: int) -> bool:
            buffer[index] = index
            return torch.is_grad_enabled()

        assert not any(run_parts([in_one_go(lambda index=index: write(index)) for index in range(4)]))
    assert buffer.tolist() == [0, 1, 2, 3]


def test_an_error_is_raised_when_no_part_is_at_work_any_more() -> None:
    at_work: set[int] = set()

    def part(index: int) -> Part[None]:
        for turn in range(5):
            at_work.add(index)
            torch.ones(100, 100) @ torch.ones(100, 100)
            if (index, turn) == (1, 2):
                at_work.discard(index)
                raise ValueError("part 1 broke")
            at_work.discard(index)
            yield Stop.PASS

    with pytest.raises(ValueError, match="part 1 broke"):
        run_parts([part(index) for index in range(4)])
    assert not at_work
    assert run_parts([in_one_go(lambda: "fine") for _ in range(4)]) == ["fine"] * 4


def test_there_are_two_parts_for_each_thread_unless_they_get_too_small(threads: int) -> None:
    assert parts_wanted(rows=2 * threads * 96, least=96) == 2 * threads
    assert parts_wanted(rows=2 * threads * 96 - 1, least=96) == 1
    assert are_enough(3) == (threads > 1)
    assert are_enough(2) == (threads == 2)
