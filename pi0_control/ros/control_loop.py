"""A steady beat on a thread of its own, on a clock that nobody sets."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

KEPT = 1000  # beats that the figures are of


class ControlLoop:
    """Calls ``tick`` once per period until stopped; a period that was missed is left out, never made up for.

    Args:
        period_s: of the ticks [s].
        tick: called with the time on the steady clock [s]; an error in it ends the loop.
        has_ended: called on the loop's thread when it has ended.

    Attributes:
        missed: periods in which no tick began.
    """

    def __init__(
        self, period_s: float, tick: Callable[[float], None], has_ended: Callable[[], None] = lambda: None
    ) -> None:
        self.missed = 0
        self._period_s, self._tick = period_s, tick
        self._late_s: deque[float] = deque(maxlen=KEPT)
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, "control")
        self._run: Future[None] = self._thread.submit(self._beat)
        self._run.add_done_callback(lambda _: has_ended())

    @property
    def failure(self) -> BaseException | None:
        """What ended the loop; None while it goes on or if it was stopped."""
        return self._run.exception() if self._run.done() else None

    def jitter_ms(self) -> tuple[float, float]:
        """How late the ticks of the last :data:`KEPT` periods were [ms]: median and 99th percentile."""
        late_s = list(self._late_s)
        p50, p99 = np.percentile(late_s, [50, 99]) * 1000 if late_s else (0.0, 0.0)
        return float(p50), float(p99)

    def stop(self) -> None:
        """No tick begins any more when this returns; not to be called from a tick."""
        self._stop.set()
        self._thread.shutdown()

    def _beat(self) -> None:
        due_s = time.monotonic()
        while not self._stop.wait(max(0.0, due_s - time.monotonic())):
            now_s = time.monotonic()
            missed = int((now_s - due_s) / self._period_s)
            self.missed += missed
            due_s += missed * self._period_s
            self._late_s.append(now_s - due_s)
            self._tick(now_s)
            due_s += self._period_s
