"""Playing chunks: which action is due now, when to infer the next chunk, what becomes of one that comes late.

No clock is read here; every question comes with the time ``now_s`` on one monotonic clock [s], and the answers follow
from the calls alone.

The player keeps a plan: one action per control step. An inference begins at a step of the plan, and step 0 of its chunk
is that step, so when the chunk is there the actions played meanwhile are skipped, as many as really were: the delay is
counted, never estimated. The plan stands still while the robot holds. So a chunk that comes after the plan ran out
goes on where the robot stopped, without a jump, and the time of a first inference or a warm-up counts for nothing.
Steps that pass while nobody asks for their action are over nevertheless.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pi0_control.control.rtc import DelayForecast, chunk_prefix
from pi0_control.errors import ConfigError
from pi0_control.policy import Pi0Policy, Policy, RtcConfig
from pi0_control.types import ActionChunk, ChunkPrefix, Observation

Strategy = Literal["sync", "async", "ensemble", "rtc", "rtc_trained"]
OnNewPrompt = Literal["drop", "finish"]


@dataclass(frozen=True)
class ChunkingConfig:
    """How chunks are played.

    Attributes:
        strategy: ``sync`` plays ``execution_horizon`` actions, then infers while the robot holds. The others infer
            while they play, and go over to the new chunk when it is there: ``async`` as it comes; ``ensemble`` averages
            all predictions for the step that is due (ACT, arXiv 2304.13705); ``rtc`` gives the policy the actions it
            has to continue (real-time chunking, arXiv 2506.07339); ``rtc_trained`` too, for policies trained so
            (arXiv 2512.05964), and drops a chunk that comes later than it was made for.
        execution_horizon: from which step of a chunk on the next one is inferred, s. If None, the policy's
            recommendation; with strategies that infer while they play no more than half a chunk, which leaves them
            something to play (LeRobot's checkpoints recommend the whole); and every step with ``ensemble``.
        on_new_prompt: what becomes of chunks of the prompt before: ``drop`` ends them at once, and the robot holds
            until there is one of the new prompt; ``finish`` plays them as if nothing had changed.
        ensemble_decay: m of the weights exp(-m i), where i = 0 is the oldest prediction; above 0 favours old ones.
        interpolation: commands per action N: the robot is commanded N times as often as the policy acts, on straight
            lines between its actions, each of which is reached with the last of its N commands.
        first_delay: with ``rtc`` and ``rtc_trained``, the forecast of the delay before any was counted, in control
            steps; the execution horizon if None, the longest that leaves no gap.
        delay_memory: how many counted delays the forecast is the maximum of.
        max_delay: most steps the policy is given as decided; with ``rtc_trained`` what it was trained for, if that is
            less or this None, and the policy tells.

    Raises:
        ConfigError: an unknown name or a number out of range.
    """

    strategy: Strategy = "sync"
    execution_horizon: int | None = None
    on_new_prompt: OnNewPrompt = "drop"
    ensemble_decay: float = 0.01
    interpolation: int = 1
    first_delay: int | None = None
    delay_memory: int = 10
    max_delay: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (("strategy", get_args(Strategy)), ("on_new_prompt", get_args(OnNewPrompt))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"No {name} {getattr(self, name)!r}; available: {list(choices)}.")
        least = {"interpolation": 1, "first_delay": 0, "delay_memory": 1, "max_delay": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(f"{name} is {value}; expected {bound} or more.")
        if not -1 <= self.ensemble_decay < math.inf:  # below, weights grow beyond what a number holds
            raise ConfigError(f"ensemble_decay is {self.ensemble_decay}; expected a finite number from -1 on.")

    @property
    def has_prefix(self) -> bool:
        """Whether the policy is given the actions to continue."""
        return self.strategy in ("rtc", "rtc_trained")

    @property
    def rtc(self) -> RtcConfig | None:
        """How a policy continues chunks for it; None: as it does by itself."""
        return RtcConfig("trained") if self.strategy == "rtc_trained" else None

    def for_policy(self, horizon: int, recommended: int, trained_delay: int | None = None) -> "ChunkingConfig":
        """The same for one policy: with an execution horizon and, for ``rtc_trained``, no longer delay than trained.

        Args:
            horizon: actions per chunk.
            recommended: its execution horizon, where there is none of one's own.
            trained_delay: as :func:`trained_delay` tells.

        Raises:
            ConfigError: an execution horizon outside 1 .. ``horizon``, or a policy that cannot continue chunks so.
        """
        most = {"sync": recommended, "ensemble": 1}.get(self.strategy, max(1, horizon // 2))
        default = min(recommended, most)
        steps = default if self.execution_horizon is None else self.execution_horizon
        if not 1 <= steps <= horizon:
            raise ConfigError(f"execution_horizon is {steps}; expected 1 to {horizon}, the policy's horizon.")
        if trained_delay is None or not self.has_prefix:
            return replace(self, execution_horizon=steps)
        here, other = ("rtc_trained", "rtc") if trained_delay else ("rtc", "rtc_trained")
        if self.strategy == other:
            way = "continues given actions as it was trained to" if trained_delay else "is guided to continue"
            suited = [strategy for strategy in get_args(Strategy) if strategy != other]
            raise ConfigError(
                f"The policy {way}, which is for strategy {here!r}; got {other!r}, available: {suited}. "
                "How it continues is said where it is opened (RtcConfig)."
            )
        delays = [delay for delay in (self.max_delay, trained_delay or None) if delay is not None]
        return replace(self, execution_horizon=steps, max_delay=min(delays, default=None))


def trained_delay(policy: Policy) -> int | None:
    """Most steps of a chunk that a policy continues as it was trained to; 0: it is guided; None: it does not tell."""
    if not isinstance(policy, Pi0Policy):
        return None
    return policy.config.rtc_max_delay if policy.rtc.mode == "trained" else 0


@dataclass(frozen=True)
class _Plan:
    """What is being played: the newest chunk, which begins at step ``first``; ``actions[i]`` is for step ``first + i``.

    In an ensemble that is a mean of predictions, in which the newest has the share ``shares[i]``.
    """

    first: int
    actions: NDArray[np.float32]
    prompt: str
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, first: int, chunk: ActionChunk, prompt: str) -> "_Plan":
        """A chunk by itself."""
        return cls(first, chunk.actions, prompt, np.ones(chunk.horizon))

    @property
    def end(self) -> int:
        """First step after the last."""
        return self.first + len(self.actions)

    def averaged_into(self, older: "_Plan", step: int, decay: float) -> "_Plan":
        """This single chunk with the older predictions for the steps from ``step`` on.

        Each prediction has exp(-decay) times the weight of the one before, which leaves it this share of the sum.
        """
        end = min(self.end, older.end)
        new, old = slice(step - self.first, end - self.first), slice(step - older.first, end - older.first)
        actions, shares, before = self.actions.copy(), self.shares.copy(), older.actions[old]
        share = math.exp(-decay) * older.shares[old]
        shares[new] = share = share / (1 + share)
        actions[new] = before + share[:, None] * (actions[new] - before)
        return _Plan(self.first, actions, self.prompt, shares)


@dataclass(frozen=True)
class _Inference:
    """One under way: on which observation, at which step of the plan it began, what was said to be decided."""

    first: int
    stamp_s: float
    prompt: str
    prefix: ChunkPrefix | None


class ChunkPlayer:
    """Plays chunks by one strategy; one inference at a time.

    At every control step: :meth:`load` what has come, ask :meth:`wants_chunk` and if so :meth:`begin` an inference,
    then ask for the :meth:`action`. An action is due from half a command period before its time to half a period after,
    so a control loop may jitter by that much. If the clock goes back, the player waits.

    Args:
        config: with an execution horizon, as from :meth:`ChunkingConfig.for_policy`.

    Raises:
        ConfigError: without one, or one below 1.

    Attributes:
        reason: after :meth:`action`, why none is due, or that a chunk of a former prompt is being finished, else empty;
            after :meth:`load`, why a chunk was refused.
        last_delay: actions played between the begin and the loading of the last chunk that came; None before.
        last_seam_jump: after :meth:`load`, the distance between the action that would have come and the one that comes,
            float32 [D] in the joints' units; None where the robot held or the chunk was refused.
    """

    def __init__(self, config: ChunkingConfig) -> None:
        if config.execution_horizon is None or config.execution_horizon < 1:
            raise ConfigError(
                f"execution_horizon is {config.execution_horizon}; expected one or more, such as for_policy() gives."
            )
        self.config = config
        self._execution_horizon = config.execution_horizon
        first_delay = config.execution_horizon if config.first_delay is None else config.first_delay
        self._forecast = DelayForecast(first_delay, config.delay_memory)
        self.reset()

    @property
    def queued(self) -> int:
        """Actions of the plan that are not played yet."""
        return self._end - self._next

    def reset(self) -> None:
        """Forget everything; a chunk whose inference is under way will be refused."""
        self.reason = self._trouble = "no chunk yet"
        self.last_delay: int | None = None
        self.last_seam_jump: NDArray[np.float32] | None = None
        self._forecast.reset()
        self._prompt: str | None = None
        self._inference: _Inference | None = None
        self._plan: _Plan | None = None
        self._next = self._end = 0  # first step of the plan not played yet; first without an action
        self._origin_s: float | None = None  # time of step 0 of the plan; None while it stands still
        self._dt_s = 0.0
        self._tick = 0  # command period of the plan under way, interpolation of them per step
        self._target: NDArray[np.float32] | None = None  # action of the step last played, unless the robot held since
        self._before: NDArray[np.float32] | None = None  # and of the step before

    def wants_chunk(self, now_s: float, prompt: str) -> bool:
        """Whether to begin an inference now, which is never while one is under way.

        Args:
            now_s: the time [s].
            prompt: the one in force from now on.
        """
        step = self._advance(now_s)
        if self.config.on_new_prompt == "drop" and self._plan is not None and self._plan.prompt != prompt:
            self._tell(f"chunk of the former prompt {self._plan.prompt!r} dropped")
            self._plan, self._end, self._origin_s = None, self._next, None
        self._prompt = prompt
        if self._inference is not None:
            return False
        if self._plan is None:
            return True
        return step - self._plan.first >= min(self._execution_horizon, len(self._plan.actions))

    def begin(self, now_s: float, observation: Observation) -> ChunkPrefix | None:
        """An inference on this observation begins now; one under way is given up.

        Returns:
            what the new chunk has to continue, by the strategies ``rtc`` and ``rtc_trained`` while there is something.
        """
        self._advance(now_s)
        prefix = self._prefix(observation.prompt) if self.config.has_prefix else None
        self._inference = _Inference(self._next, observation.stamp_s, observation.prompt, prefix)
        return prefix

    def load(self, chunk: ActionChunk, now_s: float) -> bool:
        """The chunk of the inference under way has come; its actions from the present step of the plan on are played.

        Refused, with the reason in :attr:`reason`, are a chunk of another observation than that of the inference under
        way (late, twice or out of order), of a former prompt if these are dropped, of numbers that are not finite, and
        one without an action left to play.

        Returns:
            whether it is played.
        """
        inference, self.last_seam_jump = self._inference, None
        if inference is None or chunk.start_s != inference.stamp_s or chunk.prompt not in ("", inference.prompt):
            self._tell("chunk refused: it is not of the inference under way")
            return False
        self._inference = None
        step = self._advance(now_s)
        if self._origin_s is not None and step > self._end:
            self._stop()  # ran out, and nobody asked
        plan = _Plan.of(inference.first, chunk, inference.prompt)
        refusal = self._refusal(inference, plan, chunk.dt_s)
        if refusal:
            self._tell(f"chunk refused: {refusal}")
        else:
            self._adopt(plan, chunk.dt_s)
        return not refusal

    def abandon(self) -> None:
        """The inference under way failed or takes too long; its chunk will be refused."""
        if self._inference is not None:
            self._inference = None
            self._tell("inference failed or timed out")

    def action(self, now_s: float) -> NDArray[np.float32] | None:
        """The joint targets due now, float32 [D]; None means hold, and :attr:`reason` says why."""
        step = self._advance(now_s)
        if step >= self._end or self._plan is None:
            self.reason = self._trouble or "chunk exhausted"
            self._stop()
            return None
        if self._origin_s is None:
            self._origin_s = now_s - self._next * self._dt_s
            self._tick = self._next * self.config.interpolation
        if step >= self._next:
            self._before, self._target = self._target, self._plan.actions[step - self._plan.first]
            self._next = step + 1
        prompt, self._trouble = self._plan.prompt, ""
        self.reason = "" if prompt == self._prompt else f"finishing the chunk of the former prompt {prompt!r}"
        return self._interpolated()

    def _advance(self, now_s: float) -> int:
        """The step of the plan for this time; those before it are over. It stands still while the robot holds."""
        if self._origin_s is None:
            return self._next
        period_s = self._dt_s / self.config.interpolation
        self._tick = max(self._tick, math.floor((now_s - self._origin_s) / period_s + 0.5))
        step = self._tick // self.config.interpolation
        self._next = max(self._next, min(step, self._end))
        return step

    def _tell(self, trouble: str) -> None:
        self.reason = self._trouble = trouble

    def _stop(self) -> None:
        """From here on the robot holds."""
        self._origin_s = self._target = self._before = None

    def _prefix(self, prompt: str) -> ChunkPrefix | None:
        plan = self._plan
        if plan is None:
            return None
        delay = self._forecast.delay
        if self.config.max_delay is not None:
            delay = min(delay, self.config.max_delay)
        end = len(plan.actions) - self._execution_horizon if plan.prompt == prompt else delay
        return chunk_prefix(plan.actions[self._next - plan.first :], delay, end)

    def _refusal(self, inference: _Inference, plan: _Plan, dt_s: float) -> str:
        """Why the chunk that has come is not played; empty if it is."""
        if self.config.on_new_prompt == "drop" and self._prompt not in (None, plan.prompt):
            return f"it is of the former prompt {plan.prompt!r}"
        self.last_delay = self._next - plan.first
        decided = inference.prefix.delay if inference.prefix is not None else 0
        if inference.prefix is not None:
            self._forecast.observe(self.last_delay)
        if self.config.strategy == "rtc_trained" and self.last_delay > decided:
            return f"it was made for a delay of {decided} steps and came after {self.last_delay}"
        if not np.isfinite(plan.actions).all():
            return "not all its actions are finite"
        if not 0 < dt_s < math.inf:
            return f"its actions are {dt_s} s apart"
        if self._end_of(plan) <= self._next:
            return "the time of all its actions is over"
        return ""

    def _adopt(self, plan: _Plan, dt_s: float) -> None:
        """Go over to the chunk at the next step."""
        step, old = self._next, self._plan
        if self.config.strategy == "ensemble" and old is not None and old.prompt == plan.prompt and old.end > step:
            plan = plan.averaged_into(old, step, self.config.ensemble_decay)
        if old is not None and old.end > step and self._origin_s is not None:
            self.last_seam_jump = np.abs(plan.actions[step - plan.first] - old.actions[step - old.first])
        self._plan, self._end = plan, self._end_of(plan)
        if dt_s != self._dt_s:
            self._dt_s, self._origin_s = dt_s, None

    def _end_of(self, plan: _Plan) -> int:
        """First step without an action to play."""
        return min(plan.end, plan.first + self._execution_horizon) if self.config.strategy == "sync" else plan.end

    def _interpolated(self) -> NDArray[np.float32]:
        """The command of the present tick, on the line from the action before to the present one."""
        assert self._target is not None
        share = (self._tick % self.config.interpolation + 1) / self.config.interpolation
        if self._before is None or share == 1:
            return self._target.copy()
        return self._before + np.float32(share) * (self._target - self._before)
