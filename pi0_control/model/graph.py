"""One CUDA graph over encoding, prefill and all denoising steps: a single launch per chunk, for each shape of inputs.

A graph replays fixed kernels on fixed addresses, so every shape has buffers of its own, which inputs are copied into
and actions are read from. Prompts are padded to one of few lengths, and graphs of all of them are made at once: none
has to be made in the middle of control, though a prompt with the state in it changes its length all the time. A graph
that was just captured has to reproduce what the operators of PyTorch give one by one; it is not used if it does not.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor

from pi0_control.model.fast import FastSampler
from pi0_control.model.pi0 import ModelInputs, Pi0
from pi0_control.model.rtc import Guidance
from pi0_control.model.sampler import Flow, now

LOG = logging.getLogger(__name__)
WARM_UPS = 3  # runs before capture, in which kernels are chosen and workspaces allocated
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03}  # rms of a graph's difference, of the actions' spread
TOLERANCE_FLOAT8 = 0.1  # where bfloat16 rounds the other way, float8 may, too
Kind = tuple[object, ...]


@dataclass
class Program:
    """All work of one chunk on buffers that stay where they are; runs on any device.

    Attributes:
        inputs: buffers for one batch of trimmed inputs.
        is_full: nothing in them will ever be masked.
        flow: buffers of where it starts and of what steers it.
        actions: buffer of the result, float32 [B, horizon, action_dim].
    """

    sampler: FastSampler
    inputs: ModelInputs
    is_full: bool
    flow: Flow
    actions: Tensor

    @classmethod
    def of(cls, sampler: FastSampler, inputs: ModelInputs, is_full: bool, flow: Flow) -> "Program":
        """For inputs and flows of these shapes, steered in this way; its buffers hold nothing of them yet."""
        device = sampler.model.device
        with torch.inference_mode(False):  # whose tensors could not be written into outside of it
            there = ModelInputs(**{name: torch.zeros_like(each, device=device) for name, each in vars(inputs).items()})
            flow = flow.on(*(torch.zeros_like(each, device=device) for each in flow.tensors))
            return cls(sampler, there, is_full, flow, torch.zeros_like(flow.x_t))

    def fill(self, inputs: ModelInputs, flow: Flow) -> None:
        """Copy one batch in."""
        buffers = (*vars(self.inputs).values(), *self.flow.tensors)
        for buffer, tensor in zip(buffers, (*vars(inputs).values(), *flow.tensors), strict=True):
            buffer.copy_(tensor)

    @torch.no_grad()
    def run(self) -> None:
        """From the buffers of the inputs to that of the actions; what a graph captures."""
        encoded = self.sampler.encode(self.inputs, self.is_full)
        self.actions.copy_(self.sampler.denoise(self.flow, encoded, self.inputs.state))

    def captured(self) -> Callable[[], None]:
        """:meth:`run` as one launch; just run where there are no graphs. The actions are NaN until then."""
        if self.sampler.model.device.type != "cuda":
            return self.run
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # also left by a capture that fails
            for _ in range(WARM_UPS):
                self.run()
            stream.synchronize()
            torch._C._cuda_clearCublasWorkspaces()  # or graphs would share the workspace of the first, and its end
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # other threads may go on
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        self.actions.fill_(torch.nan)
        return graph.replay


class Launch:
    """A program with what replays it."""

    def __init__(self, program: Program) -> None:
        self.program, self._replay = program, program.captured()

    def __call__(self, inputs: ModelInputs, flow: Flow) -> Tensor:
        """A chunk for inputs and a flow of the program's shapes, float32 [B, horizon, action_dim]."""
        self.program.fill(inputs, flow)
        self._replay()
        return self.program.actions.clone()


class GraphSampler:
    """A :class:`FastSampler` whose work on a GPU is one CUDA graph per shape of inputs; one chunk at a time.

    Guidance with the full jacobian goes through the FastSampler. Changed weights lead to new graphs. On a device
    without graphs the same programs run uncaptured.

    Args:
        model: the network.
        num_steps: Euler steps N.
        multiple: lengths of text are rounded up to it.
        fuses: use the kernels of ``kernels.py`` where the model and the installation have them.
        float8: as for the FastSampler.

    Raises:
        ConfigError: no float8 with this model on this device.
    """

    def __init__(
        self, model: Pi0, num_steps: int = 10, multiple: int = 64, fuses: bool = True, float8: bool = False
    ) -> None:
        self.sampler, self.multiple = FastSampler(model, num_steps, float8=float8), multiple
        fused = FastSampler(model, num_steps, fuses=True, float8=float8) if fuses and _can_fuse(model) else None
        self._ways = [self.sampler] if fused is None else [fused, self.sampler]  # in order of preference
        self._launches: dict[Kind, dict[int, Launch | None]] = {}  # by length of text
        self._made_of: tuple[object, ...] = ()
        self._lock = Lock()

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

        Inputs on the CPU. Captures graphs for a batch of a new kind (rows, cameras, steering), which takes seconds.
        ``timing`` gets ``graph_ms``, or the stages where there is no graph.
        """
        model, given, inputs = self.sampler.model, inputs, inputs.trimmed(self.multiple)
        flow = Flow.begin(model.config, inputs, noise, self.sampler.num_steps, generator, known_actions, guidance)
        with self._lock, _on(model.device):
            launch = None if flow.needs_gradient else self._launch(inputs, flow)
            if launch is None:
                return self.sampler(given, flow.x_t, None, timing, known_actions, guidance)
            started = now(model.device)
            actions = launch(inputs, flow)
            if timing is not None:
                timing["graph_ms"] = 1000 * (now(model.device) - started)
            return actions

    @property
    def fuses(self) -> bool:
        """Whether any graph it made is of the kernels of ``kernels.py``."""
        return any(self._are_fused)

    @property
    def _are_fused(self) -> list[bool]:
        """Of all that were to be made."""
        launches = chain.from_iterable(of_kind.values() for of_kind in self._launches.values())
        return [launch is not None and launch.program.sampler.fuses for launch in launches]

    def _launch(self, inputs: ModelInputs, flow: Flow) -> Launch | None:
        """That of these shapes, made if there is none yet; None where none can be had."""
        if self._ways[0].weights != self._made_of:
            self._launches, self._made_of = {}, self._ways[0].weights
        length, longest = inputs.tokens.shape[1], self.sampler.model.config.max_token_len
        is_full = length == longest and inputs.is_full
        steering = (flow.known is not None, flow.guidance and flow.guidance.max_guidance)
        kind = (*inputs.images.shape[:2], inputs.images.dtype, len(inputs.tokens), is_full, *steering)
        if kind not in self._launches:
            lengths = [longest] if is_full else [*range(self.multiple, longest, self.multiple), longest]
            self._launches[kind] = {each: self._capture(_with_text(inputs, each), is_full, flow) for each in lengths}
            if all(self._are_fused):
                self.sampler.forget_tables()  # of float8 they hold gigabytes, and only the comparison needed them
        return self._launches[kind][length]

    def _capture(self, inputs: ModelInputs, is_full: bool, flow: Flow) -> Launch | None:
        """The first of the ways to compute a chunk that can be captured and that gives the right numbers."""
        device = self.sampler.model.device
        there, flow_there = inputs.to(device), flow.on(*(tensor.to(device) for tensor in flow.tensors))
        expected = self.sampler.denoise(flow_there, self.sampler.encode(there, is_full), there.state)
        for sampler in self._ways:
            way = "A CUDA graph of fused kernels" if sampler.fuses else "A CUDA graph"
            started = now(device)
            try:
                launch = Launch(Program.of(sampler, inputs, is_full, flow))
                error = difference(launch(inputs, flow), expected)
            except Exception as problem:  # of a compiler, a driver, the memory
                LOG.warning("%s could not be made (%s: %s).", way, type(problem).__name__, problem)
                continue
            if error < (TOLERANCE_FLOAT8 if sampler.float8 else TOLERANCE[sampler.model.dtype]):
                took_s = now(device) - started
                LOG.info("%s was made in %.1f s; its actions are %.2f %% off.", way, took_s, 100 * error)
                return launch
            LOG.warning("%s is not used: its actions are %.1f %% off.", way, 100 * error)
            del launch  # before the next is captured
        return None


def difference(actions: Tensor, expected: Tensor) -> float:
    """Rms of what two chunks differ by, of the expected one's spread; infinite if one is not finite."""
    rms = float((actions - expected).square().mean().sqrt() / expected.std().clamp(min=1e-6))
    return rms if math.isfinite(rms) else math.inf


def _with_text(inputs: ModelInputs, length: int) -> ModelInputs:
    """The same batch with its text cut or padded to a length."""
    missing = (0, length - inputs.tokens.shape[1])
    return replace(inputs, tokens=F.pad(inputs.tokens, missing), token_mask=F.pad(inputs.token_mask, missing))


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Where streams, graphs and Triton's kernels belong, which all ask for the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _can_fuse(model: Pi0) -> bool:
    """Whether there are kernels for this model here; Triton comes with PyTorch for a GPU."""
    if model.device.type != "cuda" or model.dtype == torch.float32:
        return False
    try:
        from pi0_control.model.fused import can_fuse
    except ImportError:
        return False
    return can_fuse(model)
