"""A steady beat that leaves out what it missed, and says what ended it."""

import threading
import time

from pi0_control.ros.control_loop import ControlLoop

LIMIT_S = 60


def test_it_ticks_until_stopped_with_increasing_times() -> None:
    times, enough = list[float](), threading.Event()

    def tick(now_s: float) -> None:
        times.append(now_s)
        if len(times) == 5:
            enough.set()

    loop = ControlLoop(0.002, tick)
    assert enough.wait(LIMIT_S)
    loop.stop()
    count = len(times)
    assert loop.failure is None
    assert times == sorted(times)
    assert times[4] - times[0] >= 0.002 * 3  # no beat comes early
    assert 0 <= loop.jitter_ms()[0] <= loop.jitter_ms()[1] <= 2
    assert len(times) == count


def test_missed_periods_are_left_out() -> None:
    times, done = list[float](), threading.Event()

    def tick(now_s: float) -> None:
        times.append(now_s)
        if len(times) == 1:
            while time.monotonic() < now_s + 0.035:  # busy for three and a half periods
                pass
        else:
            done.set()
            loop_is_over.wait(LIMIT_S)

    loop_is_over = threading.Event()
    loop = ControlLoop(0.01, tick)
    assert done.wait(LIMIT_S)
    loop_is_over.set()
    loop.stop()
    assert loop.missed >= 2


def test_a_tick_that_raises_ends_it_and_is_known() -> None:
    raised = threading.Event()

    def tick(now_s: float) -> None:
        raised.set()
        raise ValueError("no such arm")

    loop = ControlLoop(0.001, tick)
    assert raised.wait(LIMIT_S)
    loop.stop()
    assert isinstance(loop.failure, ValueError)
