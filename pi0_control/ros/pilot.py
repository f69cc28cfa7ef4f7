"""The loop without ROS: inputs and the policy's chunks to commands, one step per command period.

Inference runs on a worker; everything else happens in :meth:`Pilot.step`. What to play and what may be commanded is
decided by :class:`ChunkPlayer` and :class:`Safety`.
"""

import math
from concurrent.futures import Executor, Future, wait
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pi0_control.control import ChunkingConfig, ChunkPlayer, Safety
from pi0_control.control.chunking import trained_delay
from pi0_control.errors import ObservationError
from pi0_control.policy import Policy
from pi0_control.ros.inputs import Inputs, Look
from pi0_control.ros.reading import NS
from pi0_control.types import ActionChunk, ChunkPrefix, Command, Observation

STILL = 1e-6  # a command that differs by less stands; rounding leaves this of a rate
PREVIEW_STEPS = 1000  # far beyond any horizon


@dataclass(frozen=True)
class _Inference:
    """One on the worker: when it began, and the stamp of its observation."""

    chunk: Future[ActionChunk]
    begun_s: float
    stamp_ns: int


class Pilot:
    """Flies one robot. Starts disabled: then it commands nothing.

    Args:
        policy: asked on the worker only.
        inputs: filled by somebody else.
        chunking: how chunks are played.
        safety: of the policy's robot, with the cameras of ``inputs``.
        worker: one thread.
        is_lock_step: wait for every inference, because the robot waits too.

    Attributes:
        prompt: the instruction in force, as of the last :meth:`hear`; without one the arm holds.
        is_enabled: whether the policy drives.
        command: the last one, while it commands.
        look: the inputs of the last step, or of the last :meth:`look_on`.
        has_new_chunk: whether the last step went over to a new chunk; ``chunk_stamp_ns`` is its observation's.
        inference_s: how long the inference under way has been running, else how long the last one ran [s].
        timing_ms: of the last chunk, by stage [ms].
        seam_jump: where the last chunk took over from another: the largest of its jumps [unit of the joint].
        holds: how many times the arm had to hold since it was enabled.
    """

    def __init__(
        self,
        policy: Policy,
        inputs: Inputs,
        chunking: ChunkingConfig,
        safety: Safety,
        worker: Executor,
        is_lock_step: bool = False,
    ) -> None:
        chunking = chunking.for_policy(policy.horizon, policy.execution_horizon, trained_delay(policy))
        self.period_s = policy.robot.dt_s / chunking.interpolation
        self.policy, self.inputs, self.safety = policy, inputs, safety
        self.player = ChunkPlayer(chunking)
        self.prompt = ""
        self.is_enabled = False
        self.command: Command | None = None
        self.look: Look = inputs.look(0.0)
        self.has_new_chunk, self.chunk_stamp_ns = False, 0
        self.inference_s, self.timing_ms = 0.0, dict[str, float]()
        self.seam_jump = 0.0
        self.holds = 0
        self._worker, self._is_lock_step = worker, is_lock_step
        self._inference: _Inference | None = None
        self._policy_error = self._bad_observation = ""
        self._clock_ns = 0
        self._heard_s = 0.0

    def hear(self, prompt: str, now_s: float) -> None:
        """The instruction from now on, be it a new one or the same again; ``now_s`` is the steady clock [s]."""
        self.prompt, self._heard_s = prompt, now_s

    def enable(self) -> str:
        """Let the policy drive. Returns why not, empty if it does."""
        if self.safety.fault:
            return f"a fault is latched: {self.safety.fault}; reset first"
        if self.command is None:  # silent until now, so the arm may have been moved
            self.safety.reset()
            self.player.reset()
            self.holds = 0
        self.is_enabled = True
        return ""

    def disable(self) -> None:
        """Brake; once the arm stands, command nothing. In lock-step it stands already."""
        self.is_enabled = False
        if self._is_lock_step:
            self.halt()

    def halt(self) -> None:
        """Command nothing from now on, whether the arm stands or not."""
        self.is_enabled, self.command = False, None

    def look_on(self, now_s: float) -> None:
        """Take note of the inputs while there are no steps."""
        self.look = self.inputs.look(now_s, keeps_formats=False)

    def is_at_rest(self, limit_s: float) -> bool:
        """Whether no inference is under way any more, once so long was waited for it [s]."""
        return self._inference is None or bool(wait([self._inference.chunk], limit_s).done)

    @property
    def policy_trouble(self) -> str:
        """Why the policy gave no chunk when it was asked last; empty if it did, or is not asked now."""
        return self._policy_error or self._bad_observation

    def reset(self, seed: int | None = None) -> str:
        """Clear a fault and begin an episode. Returns why not, empty if done.

        Args:
            seed: restarts the policy's noise.
        """
        if self.command is not None and not self.safety.fault:
            return "the arm is being driven; disable first"
        self.safety.reset()
        self.player.reset()
        self.inputs.accept_any_format()
        self._policy_error = self._bad_observation = ""
        self._worker.submit(self.policy.reset, seed)
        return ""

    def step(self, now_s: float, clock_ns: int) -> Command | None:
        """The command to send now.

        Args:
            now_s: the steady clock [s].
            clock_ns: the ROS clock [ns].

        Returns:
            None while disabled, once the arm stands, and before the first good measured pose.
        """
        self._watch_clock(clock_ns)
        self.has_new_chunk = False
        self._collect(now_s)
        look = self.look = self.inputs.look(now_s)
        if not self.is_enabled and self.command is None:
            return None
        prompt_age_s = 0.0 if self._is_lock_step else max(0.0, now_s - self._heard_s)
        action, reason = self._action(look, now_s, prompt_age_s)
        command = self.safety.check(
            now_s,
            action,
            look.state,
            {**look.ages_s, "prompt": prompt_age_s},
            reason=reason,
            policy_error=self._policy_error,
            inference_s=now_s - self._inference.begun_s if self._inference else 0.0,
        )
        if command is not None and command.status == "holding" and look.troubles:
            command = replace(command, reason=reason)  # says more than Safety can see
        return self._take(command)

    def preview(self, now_s: float) -> list[Command]:
        """The commands from the last one on, one per period, if nothing new comes: until the arm stands.

        Copies of player and safety are played on, with an arm that follows.
        """
        player, safety = copy(self.player), copy(self.safety)
        commands, ages_s = [] if self.command is None else [self.command], dict.fromkeys(safety.inputs, 0.0)
        is_playing = bool(commands) and commands[0].status == "tracking"
        while commands and len(commands) < PREVIEW_STEPS:
            due_s = now_s + len(commands) * self.period_s
            action = player.action(due_s) if is_playing else None
            is_playing = action is not None
            command = safety.check(due_s, action, commands[-1].positions, ages_s)
            if command is None or (action is None and np.array_equal(command.positions, commands[-1].positions)):
                break
            commands.append(command)
        return commands

    def _watch_clock(self, clock_ns: int) -> None:
        if clock_ns < self._clock_ns:
            self.inputs.clear(f"since the clock went back by {(self._clock_ns - clock_ns) / NS:.3g} s")
            self.player.reset()
        self._clock_ns = clock_ns

    def _action(self, look: Look, now_s: float, prompt_age_s: float) -> tuple[NDArray[np.float32] | None, str]:
        """What the policy wants now; None, and why, where it wants nothing or must not be asked."""
        trouble = next(iter(look.troubles.values()), "") or ("" if self.prompt else "there is no prompt")
        is_old = prompt_age_s > (self.safety.config.max_prompt_age_s or math.inf)  # as Safety will say
        if trouble or is_old or not self.is_enabled:
            self._policy_error = self._bad_observation = ""  # who is not asked does not fail
            return None, trouble if self.is_enabled else "disabled"
        if not self.safety.fault:
            self._infer(look, now_s)
        if self._bad_observation:
            return None, self._bad_observation
        action = self.player.action(now_s)
        return action, self.player.reason

    def _infer(self, look: Look, now_s: float) -> None:
        """Begin an inference if one is wanted and the worker is free."""
        assert look.state is not None
        if not self.player.wants_chunk(now_s, self.prompt) or self._inference is not None:
            return
        prefix = self.player.begin(now_s, Observation({}, look.state, self.prompt, look.stamp_ns / NS))
        chunk = self._worker.submit(partial(_infer, self.policy, look, self.prompt, prefix))
        self._inference = _Inference(chunk, now_s, look.stamp_ns)
        if self._is_lock_step:
            wait([chunk])
            self._collect(now_s)

    def _collect(self, now_s: float) -> None:
        """Take what has come from the worker."""
        inference = self._inference
        if inference is None:
            return
        self.inference_s = now_s - inference.begun_s
        if not inference.chunk.done():
            if self.inference_s > self.safety.config.max_inference_s:
                self.player.abandon()
            return
        self._inference = None
        error = inference.chunk.exception()
        self._bad_observation = str(error) if isinstance(error, ObservationError) else ""
        self._policy_error = "" if error is None or self._bad_observation else f"{type(error).__name__}: {error}"
        if error is not None:
            self.player.abandon()
            return
        chunk = inference.chunk.result()
        self.has_new_chunk = self.player.load(chunk, now_s)
        if self.has_new_chunk:
            self.chunk_stamp_ns = inference.stamp_ns
        else:
            self.player.abandon()  # of another observation than was asked about: do not wait for the right one
        self.timing_ms = dict(chunk.timing_ms)
        jump = self.player.last_seam_jump
        self.seam_jump = 0.0 if jump is None else float(jump.max())

    def _take(self, command: Command | None) -> Command | None:
        """Remember the command; nothing is commanded once a disabled arm stands."""
        last, self.command = self.command, command
        if command is None:
            return None
        if last is None or command.status == "tracking":
            return command
        if last.status == "tracking":
            self.holds += self.is_enabled
        elif not self.is_enabled and np.allclose(command.positions, last.positions, rtol=0, atol=STILL):
            self.command = None
        return self.command


def _infer(policy: Policy, look: Look, prompt: str, prefix: ChunkPrefix | None) -> ActionChunk:
    return policy.infer(look.observation(prompt), prefix=prefix)
