"""One CUDA graph over encoding, prefill and all denoising steps: a single launch per chunk, for each shape of inputs.

A graph replays fixed kernels on fixed addresses, so every shape has buffers of its own, which inputs are copied into
and actions are read from. Prompts are padded to a multiple of tokens, so that few shapes occur. A graph that was just
captured has to reproduce what the operators of PyTorch give one by one; it is not used if it does not.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pi0_control.model.fast import FastSampler
from pi0_control.model.pi0 import ModelInputs, Pi0
from pi0_control.model.rtc import Guidance
from pi0_control.model.sampler import Flow, now

LOG = logging.getLogger(__name__)
WARM_UPS = 3  # runs before capture, in which kernels are chosen and workspaces allocated
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03}  # rms of a graph's difference, of the actions' spread
Shape = tuple[object, ...]


@dataclass
class Program:
    """All work of one chunk on buffers that stay where they are; runs on any device.

    Attributes:
        inputs: buffers for one batch of trimmed inputs.
        is_full: whether nothing in them is masked.
        flow: buffers of where it starts and of what steers it.
        actions: buffer of the result, float32 [B, horizon, action_dim].
    """

    sampler: FastSampler
    inputs: ModelInputs
    is_full: bool
    flow: Flow
    actions: Tensor

    @classmethod
    def of(cls, sampler: FastSampler, inputs: ModelInputs, flow: Flow) -> "Program":
        """For inputs and flows of these shapes, steered in this way."""
        device = sampler.model.device
        there = ModelInputs(**{name: tensor.to(device, copy=True) for name, tensor in vars(inputs).items()})
        flow = flow.to(device, copy=True)
        return cls(sampler, there, inputs.is_full, flow, torch.zeros_like(flow.x_t))

    def fill(self, inputs: ModelInputs, flow: Flow) -> None:
        """Copy one batch in."""
        for buffer, tensor in zip(vars(self.inputs).values(), vars(inputs).values(), strict=True):
            buffer.copy_(tensor, non_blocking=True)
        for buffer, tensor in zip(self.flow.tensors, flow.tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)

    @torch.no_grad()
    def run(self) -> None:
        """From the buffers of the inputs to that of the actions; what a graph captures."""
        encoded = self.sampler.encode(self.inputs, self.is_full)
        self.actions.copy_(self.sampler.denoise(self.flow, encoded, self.inputs.state))

    def captured(self) -> Callable[[], None]:
        """:meth:`run` as one launch; just run where there are no graphs."""
        if self.sampler.model.device.type != "cuda":
            return self.run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on meanwhile
            self.run()
        return graph.replay


class GraphSampler:
    """A :class:`FastSampler` whose work on a GPU is one CUDA graph per shape of inputs.

    Guidance with the full jacobian goes through the FastSampler. Changed weights lead to new graphs. On a device
    without graphs the same programs run uncaptured.

    Args:
        model: the network.
        num_steps: Euler steps N.
        multiple: lengths of text are rounded up to it.
        fuses: use the kernels of ``kernels.py`` where the model and the installation have them.
    """

    def __init__(self, model: Pi0, num_steps: int = 10, multiple: int = 16, fuses: bool = True) -> None:
        self.sampler, self.multiple = FastSampler(model, num_steps), multiple
        fused = FastSampler(model, num_steps, fuses=True) if fuses and _can_fuse(model) else None
        self._ways = [self.sampler] if fused is None else [fused, self.sampler]  # in order of preference
        self._launches: dict[Shape, Launch | None] = {}
        self._made_of: tuple[object, ...] = ()

    @torch.no_grad()
    def __call__(
        self,
        inputs: ModelInputs,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        timing: dict[str, float] | None = None,
        known_actions: Sequence[Tensor] | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """A chunk of actions; arguments, result and errors of :func:`sampler.sample_actions`.

        Inputs on the CPU. Captures a graph at a new shape, which takes seconds. ``timing`` gets ``graph_ms``, or the
        stages where there is no graph.
        """
        model, inputs = self.sampler.model, inputs.trimmed(self.multiple)
        flow = Flow.begin(model.config, inputs, noise, self.sampler.num_steps, generator, known_actions, guidance)
        launch = None if flow.needs_gradient else self._launch(inputs, flow)
        if launch is None:
            return self.sampler(inputs, flow.x_t, None, timing, known_actions, guidance)
        started = now(model.device)
        actions = launch(inputs, flow)
        if timing is not None:
            timing["graph_ms"] = 1000 * (now(model.device) - started)
        return actions

    def _launch(self, inputs: ModelInputs, flow: Flow) -> "Launch | None":
        """That of these shapes, made if there is none yet; None where none can be had."""
        if self._ways[0].weights != self._made_of:
            self._launches, self._made_of = {}, self._ways[0].weights
        steering = (flow.known is not None, flow.guidance and flow.guidance.max_guidance)
        shape = (*inputs.images.shape, *inputs.tokens.shape, inputs.is_full, *steering)
        if shape not in self._launches:
            self._launches[shape] = self._capture(inputs, flow)
        return self._launches[shape]

    def _capture(self, inputs: ModelInputs, flow: Flow) -> "Launch | None":
        """The first of the ways to compute a chunk that can be captured and that gives the right numbers."""
        device = self.sampler.model.device
        there, flow_there = inputs.to(device), flow.to(device)
        encoded = self.sampler.encode(there, inputs.is_full)
        expected = self.sampler.denoise(flow_there, encoded, there.state)
        for sampler in self._ways:
            way = "A CUDA graph of fused kernels" if sampler.fuses else "A CUDA graph"
            started = now(device)
            try:
                launch = Launch(Program.of(sampler, inputs, flow))
                error = difference(launch(inputs, flow), expected)
            except Exception as problem:  # of a compiler, a driver, the memory: the next way is there for all of them
                LOG.warning("%s could not be made (%s: %s).", way, type(problem).__name__, problem)
                continue
            if error < TOLERANCE[sampler.model.dtype]:
                took_s = now(device) - started
                LOG.info("%s was made in %.1f s; its actions are %.2f %% off.", way, took_s, 100 * error)
                return launch
            LOG.warning("%s is not used: its actions are %.1f %% off.", way, 100 * error)
        return None


class Launch:
    """A program with what replays it."""

    def __init__(self, program: Program) -> None:
        self.program, self._replay = program, program.captured()

    def __call__(self, inputs: ModelInputs, flow: Flow) -> Tensor:
        """A chunk for inputs and a flow of the program's shapes, float32 [B, horizon, action_dim]."""
        self.program.fill(inputs, flow)
        self._replay()
        return self.program.actions.clone()


def difference(actions: Tensor, expected: Tensor) -> float:
    """Rms of what two chunks differ by, of the expected one's spread; infinite if one is not finite."""
    rms = float((actions - expected).square().mean().sqrt() / expected.std().clamp(min=1e-6))
    return rms if math.isfinite(rms) else math.inf


def _can_fuse(model: Pi0) -> bool:
    """Whether there are kernels for this model here; Triton comes with PyTorch for a GPU."""
    if model.device.type != "cuda" or model.dtype == torch.float32:
        return False
    try:
        from pi0_control.model.fused import can_fuse
    except ImportError:
        return False
    return can_fuse(model)
