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
    line = (2 * torch.arange(images.shape[-1], device=images.device) + 1) / images.shape[-1] - 1
    right, down = line[None, None, :], line[None, :, None]
    angle = torch.deg2rad(angle_deg)
    cos, sin = (crop * part[:, None, None] for part in (angle.cos(), angle.sin()))
    from_right, from_down = ((1 - crop) * shift)[:, :, None, None].unbind(1)  # no matrix product: autocast rounds those
    source = torch.stack([cos * right - sin * down + from_right, sin * right + cos * down + from_down], dim=-1)
    return F.grid_sample(images, source, padding_mode="border", align_corners=False)


def saturate(images: Tensor, factor: Tensor) -> None:
    """Move the colours [.., 3, S, S] of pictures from their grey by a factor [.., 1, 1, 1]; 0 leaves grey; in place."""
    grey = images.mean(-3, keepdim=True)
    images.sub_(grey).mul_(factor).add_(grey)
