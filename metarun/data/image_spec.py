"""Decoding, resizing and conversion of image files to a data set's common size and channels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metarun.utils.safe_files import open_picture

Raw = np.ndarray | bytes | Path  # decoded uint8 [height, width] or [height, width, 3]; an image file's bytes; its path
GREYS_16_BIT = 257  # 65535 / 255


@dataclass(frozen=True)
class ImageSpec:
    """Size and channels of a data set's images, which are resized to squares regardless of aspect ratio."""

    size: int  # height and width in pixels
    channels: int  # 1: grey, 3: red, green, blue
    inverted: bool = False  # 255 - pixel: dark ink on light paper becomes 255 on 0


class Unreadable(Exception):
    """An image cannot be decoded; the message says why."""


def decode_image(raw: Raw, spec: ImageSpec) -> np.ndarray:
    """Image of the spec, uint8 [channels, size, size]. Raises Unreadable if it cannot be decoded."""
    try:
        if isinstance(raw, np.ndarray):
            return resize_and_convert(Image.fromarray(raw), spec)
        with open_picture(raw) as picture:
            return resize_and_convert(ImageOps.exif_transpose(picture), spec)
    except UnidentifiedImageError as error:  # its message contains a memory address
        raise Unreadable("not a picture of a known format") from error
    except Exception as error:  # Pillow raises exceptions of many types for damaged files
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise Unreadable(cause or type(error).__name__) from error


def resize_and_convert(picture: Image.Image, spec: ImageSpec) -> np.ndarray:
    """uint8 [channels, size, size]. Raises ValueError for an empty image or one of floating-point pixels."""
    if 0 in picture.size:
        raise ValueError("it has no pixels")
    picture = to_8bit_opaque(picture).convert("L" if spec.channels == 1 else "RGB")
    if picture.size != (spec.size, spec.size):
        picture = picture.resize((spec.size, spec.size), Image.Resampling.LANCZOS)
    array = np.asarray(picture)
    array = array[None] if spec.channels == 1 else array.transpose(2, 0, 1)
    return 255 - array if spec.inverted else array


def to_8bit_opaque(picture: Image.Image) -> Image.Image:
    """Image of 8 bits per channel, composited on white where it is transparent."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of no known range")
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // GREYS_16_BIT).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA"))
    return picture
