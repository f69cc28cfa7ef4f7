"""Other implementations, as installed, on views of our weights: nothing is held twice."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pi0_control.errors import ConfigError
from pi0_control.model.checkpoints import openpi_tensors
from pi0_control.model.pi0 import ModelInputs, Pi0

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")  # openpi's names and order
EMBEDDING = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
TIED_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
UNUSED_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"

Sample = Callable[[ModelInputs, Tensor], Tensor]


def openpi(model: Pi0, num_steps: int, compile_mode: str | None = None) -> Sample:
    """``PI0Pytorch.sample_actions`` of an installed openpi, with the weights of a model of the public size.

    Its own selection of float32 and bfloat16 parameters and :meth:`Pi0.cast` agree, so the tensors are shared.

    Args:
        model: π0 or π0.5 at full size.
        num_steps: Euler steps.
        compile_mode: of ``torch.compile``, such as ``max-autotune``; None leaves it eager.

    Raises:
        ConfigError: openpi (with its patched transformers) is not installed, or it has no such model.
    """
    try:
        module = importlib.import_module("openpi.models_pytorch.pi0_pytorch")
    except ImportError as error:
        raise ConfigError(f"openpi cannot be imported ({error}); install it as its README says.") from error
    config = model.config
    settings = SimpleNamespace(
        pi05=config.ada_norm == "adarms",
        paligemma_variant="gemma_2b",
        action_expert_variant="gemma_300m",
        action_dim=config.action_dim,
        action_horizon=config.action_horizon,
        dtype="float32" if model.dtype == torch.float32 else "bfloat16",
        pytorch_compile_mode=compile_mode,
    )
    with _without_memory():
        peer = module.PI0Pytorch(settings).eval()
    _share(peer, model)
    peer.to(model.device)  # its buffers

    def sample(inputs: ModelInputs, noise: Tensor) -> Tensor:
        return peer.sample_actions(model.device, _observation(inputs), noise=noise, num_steps=num_steps)

    return sample


@contextmanager
def _without_memory() -> Iterator[None]:
    """Modules that are built in here get parameters without memory or values, and real buffers."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False))

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _share(peer: nn.Module, model: Pi0) -> None:
    """Give the peer's parameters our tensors."""
    tensors = openpi_tensors(model.state_dict(), model.config)
    tensors[EMBEDDING] = tensors[TIED_HEAD] = model.embedding.weight
    for name, parameter in list(peer.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        if name == UNUSED_HEAD:
            tensor = model.embedding.weight.new_zeros(1).expand(parameter.shape)
        elif name in tensors and tensors[name].numel() == parameter.numel():
            tensor = tensors[name].view(parameter.shape)
        else:
            raise ConfigError(f"openpi has a parameter {name} {list(parameter.shape)} that the model lacks.")
        setattr(peer.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def _observation(inputs: ModelInputs) -> Any:
    """As openpi's model takes it."""
    return SimpleNamespace(
        images={name: inputs.images[:, index] for index, name in enumerate(CAMERAS)},
        image_masks={name: inputs.image_masks[:, index] for index, name in enumerate(CAMERAS)},
        tokenized_prompt=inputs.tokens,
        tokenized_prompt_mask=inputs.token_mask,
        token_ar_mask=None,
        token_loss_mask=None,
        state=inputs.state,
    )
