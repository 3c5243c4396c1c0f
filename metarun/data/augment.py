"""Random augmentation of training images, applied to all images of a meta-batch at once, on their device.

As in CloserLookFewShot and MetaOptNet: a crop out of the zero-padded image, a mirror image, and colours changed in
brightness, contrast and saturation (Krizhevsky et al. 2012; Chen et al. 2019, arXiv 1904.04232, section 4.1).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("crop", "flip", "jitter")
PADDING = 8  # a crop moves an image by up to an eighth of its size
STRENGTH = 0.4  # brightness, contrast and saturation are multiplied by 1 - STRENGTH to 1 + STRENGTH
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: how bright red, green and blue look


def augment_images(images: Tensor, random: Tensor, names: Sequence[str]) -> Tensor:
    """Augmented images [n, channels, height, width] in [0, 1], given random numbers [n, 6] in [0, 1)."""
    down, right, mirrored, *factors = random.unbind(1)
    if "crop" in names:
        images = crop(images, down, right)
    if "flip" in names:
        images = torch.where(mirrored.view(-1, 1, 1, 1) < 0.5, images.flip(-1), images)
    if "jitter" in names:
        images = jitter(images, *(1 - STRENGTH + 2 * STRENGTH * factor.view(-1, 1, 1, 1) for factor in factors))
    return images


def crop(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift each image by whole pixels of its own; uncovered pixels are 0."""
    n, _, height, width = images.shape
    border = max(height, width) // PADDING
    padded = F.pad(images, (border,) * 4)
    rows = torch.arange(height, device=images.device) + (down * (2 * border + 1)).long()[:, None]  # [n, height]
    columns = torch.arange(width, device=images.device) + (right * (2 * border + 1)).long()[:, None]  # [n, width]
    number = torch.arange(n, device=images.device).view(n, 1, 1)
    return padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Change contrast about the image's mean grey and saturation about each pixel's grey; factors [n, 1, 1, 1]."""
    images = (images * brightness).clamp(0, 1)
    images = (grey(images).mean((1, 2, 3), keepdim=True).lerp(images, contrast)).clamp(0, 1)
    return grey(images).lerp(images, saturation).clamp(0, 1)


def grey(images: Tensor) -> Tensor:
    """Grey images [n, 1, height, width] of images [n, channels, height, width]."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
