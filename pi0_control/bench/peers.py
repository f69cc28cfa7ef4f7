"""Other implementations, as installed, on views of our weights: nothing is held twice but in another dtype."""

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
    module = _module("openpi", "openpi.models_pytorch.pi0_pytorch")
    config = model.config
    settings = SimpleNamespace(
        pi05=config.ada_norm == "adarms",
        paligemma_variant="gemma_2b",
        action_expert_variant="gemma_300m",
        action_dim=config.action_dim,
        action_horizon=config.action_horizon,
        dtype=_dtype(model),
        pytorch_compile_mode=compile_mode,
    )
    peer = _build(module.PI0Pytorch, settings, model)

    def sample(inputs: ModelInputs, noise: Tensor) -> Tensor:
        return peer.sample_actions(model.device, _observation(inputs), noise=noise, num_steps=num_steps)

    return sample


def lerobot(model: Pi0, num_steps: int, compile_mode: str | None = None) -> Sample:
    """``sample_actions`` of an installed LeRobot's π0 or π0.5, with the weights of a model of the public size.

    It keeps its whole image encoder in float32, where :meth:`Pi0.cast` does not: those weights are float32 copies.

    Args:
        model: π0 or π0.5 at full size.
        num_steps: Euler steps.
        compile_mode: of ``torch.compile``, such as ``max-autotune``; None leaves it eager.

    Raises:
        ConfigError: LeRobot (with its transformers) is not installed, or it has no such model.
    """
    config, is_pi05 = model.config, model.config.ada_norm == "adarms"
    family = "pi05" if is_pi05 else "pi0"
    module = _module("lerobot", f"lerobot.policies.{family}.modeling_{family}")
    settings = getattr(module, f"{family.upper()}Config")(
        chunk_size=config.action_horizon,
        n_action_steps=config.action_horizon,
        max_state_dim=config.action_dim,
        max_action_dim=config.action_dim,
        image_resolution=(config.vision.image_size, config.vision.image_size),
        dtype=_dtype(model),
        device=model.device.type,
        compile_model=compile_mode is not None,
        compile_mode=compile_mode,
    )
    peer = _build(getattr(module, f"{family.upper()}Pytorch"), settings, model)

    def sample(inputs: ModelInputs, noise: Tensor) -> Tensor:
        images, masks = inputs.images.unbind(1), inputs.image_masks.unbind(1)
        state = () if is_pi05 else (inputs.state,)
        return peer.sample_actions(
            images, masks, inputs.tokens, inputs.token_mask, *state, noise=noise, num_steps=num_steps
        )

    return sample


PEERS = {"openpi": openpi, "lerobot": lerobot}


def _module(package: str, name: str) -> Any:
    """What is installed; LeRobot can be imported without transformers, and fails later."""
    try:
        importlib.import_module("transformers")
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{package} cannot be imported ({error}); install it as its README says.") from error


def _dtype(model: Pi0) -> str:
    return "float32" if model.dtype == torch.float32 else "bfloat16"


def _build(kind: Callable[[Any], nn.Module], settings: Any, model: Pi0) -> Any:
    """A peer with our weights and its own buffers."""
    with _without_memory():
        peer = kind(settings).eval()
    _share(peer, model)
    return peer.to(model.device)


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
    """Give the peer's parameters our tensors; copies, where it wants another dtype."""
    tensors = openpi_tensors(model.state_dict(), model.config)
    tensors[EMBEDDING] = tensors[TIED_HEAD] = model.embedding.weight
    for name, parameter in list(peer.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        if name == UNUSED_HEAD:
            tensor = model.embedding.weight.new_zeros(1).expand(parameter.shape)
        elif name in tensors and tensors[name].numel() == parameter.numel():
            tensor = tensors[name].view(parameter.shape).to(parameter.dtype)
        else:
            raise ConfigError(f"The peer has a parameter {name} {list(parameter.shape)} that the model lacks.")
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
