"""What the node says on ``/diagnostics``: how it drives, how its inputs are, what the policy costs."""

import resource
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from pi0_control.policy.memory import device_memory_mb
from pi0_control.ros.control_loop import ControlLoop
from pi0_control.ros.conversions import to_stamp
from pi0_control.ros.pilot import Pilot

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def driving(pilot: Pilot) -> tuple[bytes, str, str]:
    """Level, state and reason: ``disabled``, ``waiting`` for a first pose, or the status of the last command."""
    if pilot.command is not None:
        status = pilot.command.status
        return {"tracking": OK, "holding": WARN, "fault": ERROR}[status], status, pilot.command.reason
    if pilot.safety.fault:
        return ERROR, "fault", pilot.safety.fault
    return (WARN, "waiting", pilot.safety.reason) if pilot.is_enabled else (OK, "disabled", "")


class Diagnostics:
    """Makes the messages of one node; rates are of the time since the message before.

    Args:
        node: its full name.
        period_s: shortest time that a rate is of [s].
    """

    def __init__(self, node: str, period_s: float = 0.5) -> None:
        self._node, self._period_s = node, period_s
        self._counts: dict[str, int] = {}
        self._counted_s = 0.0
        self._rates_hz: dict[str, float] = {}

    def message(self, pilot: Pilot, loop: ControlLoop | None, now_s: float, clock_ns: int) -> DiagnosticArray:
        """All there is to say now."""
        message = DiagnosticArray()
        message.header.stamp = to_stamp(clock_ns)
        level, state, reason = driving(pilot)
        name, trouble = pilot.policy.robot.name, pilot.policy_trouble
        message.status = [
            self._status("control", name, level, reason or state, _control(pilot, loop, state)),
            self._inputs(pilot, name, now_s),
            self._status("policy", name, WARN if trouble else OK, trouble, _policy(pilot)),
        ]
        return message

    def _inputs(self, pilot: Pilot, robot: str, now_s: float) -> DiagnosticStatus:
        look, counts = pilot.look, dict(pilot.inputs.counts)
        elapsed_s = now_s - self._counted_s
        if elapsed_s >= self._period_s:
            self._rates_hz = {name: (counts[name] - self._counts.get(name, 0)) / elapsed_s for name in counts}
            self._counts, self._counted_s = counts, now_s
        values: dict[str, Any] = {}
        for stream in pilot.inputs.streams:
            values[f"{stream} age_ms"] = 1000 * look.ages_s[stream] if stream in look.ages_s else ""
            values[f"{stream} rate_hz"] = self._rates_hz.get(stream, 0.0)
        troubles = list(look.troubles.values())
        return self._status("inputs", robot, WARN if troubles else OK, "; ".join(troubles) or "fresh", values)

    def _status(self, part: str, robot: str, level: bytes, message: str, values: dict[str, Any]) -> DiagnosticStatus:
        pairs = [KeyValue(key=key, value=_words(value)) for key, value in values.items()]
        return DiagnosticStatus(
            level=level, name=f"{self._node}: {part}", hardware_id=robot, message=message, values=pairs
        )


def _control(pilot: Pilot, loop: ControlLoop | None, state: str) -> dict[str, Any]:
    p50_ms, p99_ms = loop.jitter_ms() if loop is not None else (0.0, 0.0)
    return {
        "state": state,
        "prompt": pilot.prompt,
        "queued_actions": pilot.player.queued,
        "delay_steps": pilot.player.last_delay,
        "seam_jump": pilot.seam_jump,
        "holds": pilot.holds,
        "missed_deadlines": loop.missed if loop is not None else 0,
        "jitter_p50_ms": p50_ms,
        "jitter_p99_ms": p99_ms,
    }


def _policy(pilot: Pilot) -> dict[str, Any]:
    stages = dict.fromkeys(("preprocess", "prefix", "denoise"), "") | pilot.timing_ms
    return {
        **{f"{stage}_ms": value for stage, value in stages.items()},
        "inference_ms": 1000 * pilot.inference_s,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device_memory_mb": device_memory_mb(),
    }


def _words(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
