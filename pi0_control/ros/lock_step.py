"""A robot that waits: one command for every set of inputs of one stamp, in a time counted in control periods."""

from typing import Any

from pi0_control.ros.pilot import Pilot
from pi0_control.ros.reading import to_ns
from pi0_control.types import Command


class LockStep:
    """Asks the pilot once per set; the same inputs give the same commands, bit for bit.

    The n-th set answered since :meth:`restart` is taken for the time n control periods, all of it fresh. A set that is
    there again, because the answer was lost, gets the answer it had.
    """

    def __init__(self, pilot: Pilot) -> None:
        self._pilot = pilot
        self._waiting: dict[str, Any] = {}
        self.restart()

    def restart(self) -> None:
        """Count from zero."""
        self._steps = 0
        self._answer: tuple[Command, int] | None = None

    def put(self, name: str, message: Any) -> tuple[Command, int] | None:
        """A message has come.

        Returns:
            The command and its stamp [ns] if the set is complete and the pilot is enabled.
        """
        self._waiting[name] = message
        stamps_ns = {to_ns(waiting.header.stamp) for waiting in self._waiting.values()}
        if not self._pilot.is_enabled or len(stamps_ns) > 1 or len(self._waiting) < len(self._pilot.inputs.streams):
            return None
        (stamp_ns,), messages, self._waiting = stamps_ns, self._waiting, {}
        if self._answer is not None and self._answer[1] == stamp_ns:
            return self._answer
        now_s = self._steps * self._pilot.period_s
        for stream, waiting in messages.items():
            self._pilot.inputs.put(stream, waiting, stamp_ns, now_s)
        command = self._pilot.step(now_s, stamp_ns)
        if command is None:  # no pose was measured yet, as when the clock has just gone back: as if nobody had asked
            self._pilot.safety.reset()
            self._answer = None
        else:
            self._steps += 1
            self._answer = command, stamp_ns
        return self._answer
