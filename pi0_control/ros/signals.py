"""Signals that ask a process to end. rclpy's own handlers shut ROS down while a node is in the midst of something."""

import signal

HEED_LIMIT_S = 5


def note_signals() -> list[int]:
    """The list that gets SIGINT, SIGTERM and SIGHUP as they come; for ``rclpy.init`` without its handlers, before it.

    SIGHUP is that of a terminal which is closed; under ``nohup`` it goes on being ignored.

    A process that does not come to heed the first one, such as one that loads, is ended by SIGALRM after
    :data:`HEED_LIMIT_S`. Whoever heeds it calls ``signal.alarm(0)``.
    """
    signals: list[int] = []

    def note(number: int, _: object) -> None:
        if not signals:
            signal.alarm(HEED_LIMIT_S)
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, note)
    return signals
