"""Random changes to pictures, as functions of numbers that the caller draws."""

import torch
import torch.nn.functional as F
from torch import Tensor


def turn_and_crop(images: Tensor, crop: float, shift: Tensor, angle_deg: Tensor) -> Tensor:
    """A part of each picture, enlarged to its size and turned, in one bilinear resampling.

    Args:
        images: float32 [N, 3, S, S].
        crop: side of the part, as a fraction of the picture's.
        shift: where it lies, [N, 2] (right, down), from -1 to 1 inside the picture.
        angle_deg: [N], counter-clockwise.

    Returns:
        [N, 3, S, S]; what lies outside of a picture repeats its border.
    """
    angle = torch.deg2rad(angle_deg)
    cos, sin = crop * angle.cos(), crop * angle.sin()
    rows = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))  # where each pixel comes from
    affine = torch.cat([rows, (1 - crop) * shift[..., None]], dim=-1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def saturate(images: Tensor, factor: Tensor) -> None:
    """Move the colours [.., 3, S, S] of pictures from their grey by a factor [.., 1, 1, 1]; 0 leaves grey; in place."""
    grey = images.mean(-3, keepdim=True)
    images.sub_(grey).mul_(factor).add_(grey)
