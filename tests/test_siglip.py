import pytest
import torch

from pi0_control.model.config import SiglipConfig
from pi0_control.model.siglip import Siglip

PATCH = SiglipConfig(image_size=28, patch_size=14, width=16, depth=2, num_heads=2, mlp_dim=24)
CONV = SiglipConfig(image_size=32, width=16, depth=0, num_heads=2, mlp_dim=24, stem="conv", stem_channels=(8, 16))


def images(config: SiglipConfig, batch: int = 3) -> torch.Tensor:
    shape = (batch, 3, config.image_size, config.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_so400m_has_the_public_shape_and_size() -> None:
    with torch.device("meta"):
        vision = Siglip(SiglipConfig(), 2048)
        tokens = vision(torch.empty(2, 3, 224, 224))
    assert tokens.shape == (2, 256, 2048)
    assert sum(parameter.numel() for parameter in vision.parameters()) == 412_442_352 + 1152 * 2048 + 2048


@pytest.mark.parametrize(("config", "grid"), [(PATCH, 2), (CONV, 4)])
def test_tokens_per_image(config: SiglipConfig, grid: int) -> None:
    assert config.num_tokens == grid**2
    assert Siglip(config, 20)(images(config)).shape == (3, grid**2, 20)


@pytest.mark.parametrize("config", [PATCH, CONV])
@torch.no_grad()
def test_images_are_encoded_independently_of_their_batch(config: SiglipConfig) -> None:
    vision = Siglip(config, 20)
    together = vision(images(config))
    alone = torch.cat([vision(image[None]) for image in images(config)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_run_row_by_row() -> None:
    vision = Siglip(SiglipConfig(image_size=42, patch_size=14, width=16, depth=0, num_heads=2, mlp_dim=24), 20)
    image = torch.zeros(1, 3, 42, 42)
    changed = image.clone()
    changed[0, :, 14:28, 28:] = 1.0  # second row, third column
    differs = (vision(image) != vision(changed)).any(dim=-1)[0]
    assert differs.tolist() == [index == 1 * 3 + 2 for index in range(9)]


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@torch.no_grad()
def test_back_ends_agree(backend: str) -> None:
    vision, other = Siglip(PATCH, 20, "eager"), Siglip(PATCH, 20, backend)
    other.load_state_dict(vision.state_dict())
    torch.testing.assert_close(vision(images(PATCH)), other(images(PATCH)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_stays_near(dtype: torch.dtype) -> None:
    vision = Siglip(PATCH, 20)
    exact = vision(images(PATCH))
    rounded = vision.to(dtype)(images(PATCH))
    assert rounded.dtype == dtype
    assert (rounded.float() - exact).square().mean().sqrt() < 0.02 * exact.std()


def test_gradient_reaches_every_parameter() -> None:
    for config in (PATCH, CONV):
        vision = Siglip(config, 20, "eager")
        vision(images(config)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in vision.parameters())
