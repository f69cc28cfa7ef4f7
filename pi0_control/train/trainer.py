"""Trainer: runs the stages of a training one after another, so that an interrupted run goes on exactly."""

import copy
import json
import math
import reprlib
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from pi0_control.errors import CheckpointError, DatasetError
from pi0_control.policy.pretrained import CONFIG_FILE
from pi0_control.train.batches import Draws
from pi0_control.train.config import TrainConfig
from pi0_control.train.distributed import World
from pi0_control.train.grounding import Learner
from pi0_control.train.run_folder import Checkpoint, RunFolder


class Stage(Protocol):
    """One part of a training with its data and its losses."""

    name: str
    steps: int
    samples_per_step: int

    def losses(self, learner: Learner, draws: Draws) -> dict[str, Tensor]:
        """This rank's share of the losses of one random batch; ``loss`` is the one to be minimised."""

    def validate(self, learner: Learner, device: torch.device) -> dict[str, float]:
        """Scores on held-out data, without gradients; empty when none is held out."""


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Rate of the step with this number (from 0) of a stage: linear warm-up to the peak, then half a cosine down."""
    warmup = min(config.warmup_steps, steps // 2)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)


def update_average(averaged: nn.Module, learner: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights, in place; the decay is shorter in the first steps."""
    ramped = min(decay, (step + 1) / (step + 20))
    with torch.no_grad():
        torch._foreach_lerp_(list(averaged.parameters()), list(learner.parameters()), 1 - ramped)


class Trainer:
    """Trains a learner stage by stage; each stage has its own optimiser and learning-rate schedule.

    Args:
        config: of the training.
        learner: starts from its present weights, the same on every rank; moved to the world's device.
        stages: those with no steps are skipped; at least one has some.
        folder: where checkpoint and log go.
        world: the processes that train it together.
        settings: a JSON object that identifies the run; a checkpoint of another one is refused.
        on_checkpoint: called on the main rank with the state dict of the averaged weights, the stage's name and the
            number of its steps done, whenever a checkpoint was written and at the end of every run, also of one that
            resumes a finished one.
        show_progress: draw a progress bar and print validation scores, both to stderr.
    """

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        stages: Sequence[Stage],
        folder: RunFolder,
        world: World,
        settings: str = "{}",
        on_checkpoint: Callable[[Mapping[str, Tensor], str, int], None] = lambda averaged, stage, step: None,
        show_progress: bool = True,
    ) -> None:
        self.config = config
        self.world = world
        averaged = copy.deepcopy(learner).requires_grad_(False)
        self.learner, self.averaged = world.place(learner).train(), world.place(averaged).eval()
        self.stages = [stage for stage in stages if stage.steps]
        self._folder = folder
        self._settings = settings
        self._on_checkpoint = on_checkpoint
        self._stage, self._step = 0, 0
        self._optimizer = self._new_optimizer()
        self._progress = _progress(show_progress and world.is_main)

    def resume(self) -> None:
        """Go back to where the folder's checkpoint stands.

        Raises:
            CheckpointError: there is none, it is broken, or it is of a run with other settings.
        """
        checkpoint = self._folder.load()
        difference = _first_difference(checkpoint.settings, self._settings)
        if difference:
            raise CheckpointError(
                f"{self._folder.checkpoint_file} is of a run with other settings or data: {difference}; resume with "
                "the same ones or train into another folder."
            )
        self.world.load_weights(self.learner, checkpoint.learner)
        self.world.load_weights(self.averaged, checkpoint.averaged)
        self.world.load_optimizer(self._optimizer, checkpoint.optimizer)
        self._stage, self._step = checkpoint.stage, checkpoint.step

    def run(self) -> Learner:
        """Train to the end.

        Returns:
            The averaged weights.

        Raises:
            DatasetError: the loss or its gradient is not finite any more; the last checkpoint still is.
        """
        with self._progress, closing(self._folder.log) as log:
            log.start([stage.name for stage in self.stages], self._stage, self._step)
            self._run_stage(self.stages[self._stage])
            while self._stage + 1 < len(self.stages):
                self._next_stage()
                self._run_stage(self.stages[self._stage])
        self._publish(self.world.gather(self.averaged.state_dict()))
        return self.averaged

    @property
    def _is_done(self) -> bool:
        return self._stage + 1 == len(self.stages) and self._step == self.stages[-1].steps

    def _next_stage(self) -> None:
        """Start the next stage from the averaged weights, with a fresh optimiser."""
        self._stage, self._step = self._stage + 1, 0
        self.learner.load_state_dict(self.averaged.state_dict())
        self._optimizer = self._new_optimizer()

    def _run_stage(self, stage: Stage) -> None:
        bar = self._progress.add_task(stage.name, total=stage.steps, completed=self._step, scores="")
        meter = _Meter(stage.samples_per_step, self.world)
        forward = self.world.replicate(self.learner)
        while self._step < stage.steps:
            meter.add(self._train_step(stage, forward))
            self._step += 1
            is_last = self._step == stage.steps
            saves = is_last or self._step % self.config.checkpoint_every == 0
            if saves or self._step % self.config.log_every == 0:
                self._log(stage, meter, bar)
            if is_last or self._step % self.config.validate_every == 0:
                self._validate(stage)
                meter.pause()
            if saves:
                self._save()
                meter.pause()
            self._progress.update(bar, completed=self._step)

    def _train_step(self, stage: Stage, forward: nn.Module) -> dict[str, Tensor]:
        draws = Draws(self.config.seed, self._stage, self._step, self.world)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self._step, stage.steps)
        with self._autocast():
            losses = forward(stage.losses, draws)
        self._optimizer.zero_grad(set_to_none=True)
        (losses["loss"] * self.world.size).backward()  # gradients are averaged over the ranks, but losses are shares
        norm = self.world.clip_gradients(self.learner, self.config.clip_norm)
        self._optimizer.step()
        update_average(self.averaged, self.learner, self.config.ema_decay, self._step)
        shares = {**losses, "grad_norm": norm / self.world.size}  # of a norm that is the same on all ranks
        return {name: share.detach() for name, share in shares.items()}

    def _log(self, stage: Stage, meter: "_Meter", bar: Any) -> None:
        scores = meter.flush()
        for name in ("loss", "grad_norm"):
            if not math.isfinite(scores[name]):
                raise DatasetError(
                    f"The {name} is {scores[name]} at step {self._step} of stage {stage.name!r}; expected a finite "
                    "number. Resuming would meet it again: look at the data, or train into another folder at a lower "
                    f"learning rate{self._where_to_go_on_from()}."
                )
        rate = learning_rate(self.config, self._step - 1, stage.steps)
        self._folder.log.add(stage.name, self._step, {"learning_rate": rate, **scores})
        text = f"loss {scores['loss']:.4f}  {scores['samples_per_s']:.0f} samples/s"
        self._progress.update(bar, scores=text)

    def _where_to_go_on_from(self) -> str:
        path = self._folder.path
        return f", from the last policy of this run with --init {path}" if (path / CONFIG_FILE).exists() else ""

    def _validate(self, stage: Stage) -> None:
        with self._autocast():
            scores = self.averaged(stage.validate, self.world.device)
        if not scores:
            return
        self._folder.log.add(stage.name, self._step, {"validation": scores})
        if not self._progress.disable:
            text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
            self._progress.console.print(f"{stage.name} {self._step}: {text}")

    def _save(self) -> None:
        parts = self.learner, self.averaged, self._optimizer
        learner, averaged, optimizer = (self.world.gather(part.state_dict()) for part in parts)
        self._folder.save(Checkpoint(self._settings, self._stage, self._step, learner, averaged, optimizer))
        if not self._is_done:  # else it comes at the end of the run
            self._publish(averaged)

    def _publish(self, averaged: Mapping[str, Tensor]) -> None:
        if self.world.is_main:
            self._on_checkpoint(averaged, self.stages[self._stage].name, self._step)
        self.world.wait()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        matrices = [p for p in self.learner.parameters() if p.dim() >= 2]
        others = [p for p in self.learner.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=self.config.betas, fused=True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.bf16)


def _first_difference(before: str, now: str) -> str:
    """The first entry that two JSON objects of settings differ in, in words; empty where they are the same."""
    was, is_now = (dict(_entries(json.loads(settings))) for settings in (before, now))
    for name in {**is_now, **was}:
        old, new = was.get(name), is_now.get(name)
        if old != new:
            return f"{name} was {reprlib.repr(old)} and is {reprlib.repr(new)}"
    return ""


def _entries(settings: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values that are no objects, under the names that lead there."""
    if not isinstance(settings, dict):
        yield path, settings
        return
    for name, value in settings.items():
        yield from _entries(value, f"{path}.{name}" if path else name)


class _Meter:
    """Mean losses of the whole batch, gradient norm and speed since the last time it was read."""

    def __init__(self, samples_per_step: int, world: World) -> None:
        self._samples_per_step = samples_per_step
        self._world = world
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._seconds = 0.0
        self._since = clock.perf_counter()

    def add(self, shares: dict[str, Tensor]) -> None:
        for name, share in shares.items():
            self._sums[name] = self._sums[name] + share if name in self._sums else share
        self._steps += 1
        self._lap()

    def pause(self) -> None:
        """Do not count the time since the last step."""
        self._since = clock.perf_counter()

    def flush(self) -> dict[str, float]:
        means = {name: float(self._world.sum(total)) / self._steps for name, total in self._sums.items()}
        self._lap()
        means["samples_per_s"] = round(self._steps * self._samples_per_step / self._seconds, 1)
        self._sums, self._steps, self._seconds = {}, 0, 0.0
        return means

    def _lap(self) -> None:
        now = clock.perf_counter()
        self._seconds += now - self._since
        self._since = now


def _progress(visible: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[scores]}"))
    console = Console(stderr=True)
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not visible)
