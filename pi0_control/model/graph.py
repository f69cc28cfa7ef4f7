"""One CUDA graph over encoding, prefill and all denoising steps: a single launch per chunk, for each shape of inputs.

A graph replays fixed kernels on fixed addresses, so every shape has buffers of its own, which inputs are copied into
and actions are read from. Prompts are padded to a multiple of tokens, so that few shapes occur.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pi0_control.model.fast import FastSampler, Tables
from pi0_control.model.pi0 import ModelInputs, Pi0
from pi0_control.model.sampler import Flow, sample_noise

WARM_UPS = 3  # runs before capture, in which kernels are chosen and workspaces allocated
Shape = tuple[object, ...]


@dataclass
class Program:
    """All work of one chunk on buffers that stay where they are; runs on any device.

    Attributes:
        inputs: buffers for one batch of trimmed inputs.
        is_full: whether nothing in them is masked.
        noise: buffer of the start of the flow, float32 [B, horizon, action_dim].
        actions: buffer of the result, same shape.
    """

    sampler: FastSampler
    inputs: ModelInputs
    is_full: bool
    noise: Tensor
    actions: Tensor

    @classmethod
    def of(cls, sampler: FastSampler, inputs: ModelInputs, is_full: bool) -> "Program":
        """For inputs of this shape."""
        device, config = sampler.model.device, sampler.model.config
        there = ModelInputs(
            **{field.name: getattr(inputs, field.name).to(device, copy=True) for field in fields(inputs)}
        )
        noise = torch.zeros(inputs.batch_size, config.action_horizon, config.action_dim, device=device)
        return cls(sampler, there, is_full, noise, torch.zeros_like(noise))

    def fill(self, inputs: ModelInputs, noise: Tensor) -> None:
        """Copy one batch in."""
        for field in fields(inputs):
            getattr(self.inputs, field.name).copy_(getattr(inputs, field.name), non_blocking=True)
        self.noise.copy_(noise, non_blocking=True)

    @torch.no_grad()
    def run(self) -> None:
        """From the buffers of the inputs to that of the actions; what a graph captures."""
        encoded = self.sampler.encode(self.inputs, self.is_full)
        flow = Flow(self.noise, self.sampler.num_steps)
        self.actions.copy_(self.sampler.denoise(flow, encoded, self.inputs.state))


class GraphSampler:
    """A :class:`FastSampler` without known actions or guidance whose work is one CUDA graph per shape of inputs.

    On a device without graphs it runs the same programs uncaptured. Changed weights lead to new graphs.

    Args:
        model: the network.
        num_steps: Euler steps N.
        multiple: lengths of text are rounded up to it.
    """

    def __init__(self, model: Pi0, num_steps: int = 10, multiple: int = 16) -> None:
        self.sampler, self.multiple = FastSampler(model, num_steps), multiple
        self._programs: dict[Shape, tuple[Program, torch.cuda.CUDAGraph | None]] = {}
        self._tables: Tables | None = None

    def __call__(
        self, inputs: ModelInputs, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """A chunk, float32 [B, horizon, action_dim]; inputs on the CPU. Captures a graph at a new shape."""
        model = self.sampler.model
        inputs = inputs.trimmed(self.multiple)
        if noise is None:
            noise = sample_noise(model.config, inputs.batch_size, generator, model.device)
        if self.sampler.tables is not self._tables:
            self._programs, self._tables = {}, self.sampler.tables
        shape = (*inputs.images.shape, *inputs.tokens.shape, inputs.is_full)
        if shape not in self._programs:
            self._programs[shape] = self._prepare(inputs)
        program, graph = self._programs[shape]
        program.fill(inputs, noise)
        if graph is None:
            program.run()
        else:
            graph.replay()
        return program.actions.clone()

    def _prepare(self, inputs: ModelInputs) -> tuple[Program, torch.cuda.CUDAGraph | None]:
        program = Program.of(self.sampler, inputs, inputs.is_full)
        if self.sampler.model.device.type != "cuda":
            return program, None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                program.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            program.run()
        return program, graph
