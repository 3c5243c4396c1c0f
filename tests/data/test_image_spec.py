"""Pictures of every kind that people have come out as the same uint8 squares."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarun.data.image_spec import ImageSpec, Unreadable, decode_image

GREY, COLOUR = ImageSpec(6, 1), ImageSpec(6, 3)
HALF = np.zeros((6, 6), np.uint8)  # black left, white right
HALF[:, 3:] = 255


def encoded(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16"])
@pytest.mark.parametrize("look", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_mode(mode: str, look: ImageSpec) -> None:
    if mode.startswith("I"):
        picture = Image.fromarray(HALF.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    else:
        picture = Image.fromarray(HALF).convert("RGB").convert(mode)
    form = "TIFF" if mode in ("PA", "CMYK", "YCbCr", "LA", "I") else "PNG"
    found = decode_image(encoded(picture, form), look)
    assert found.shape == (look.channels, 6, 6) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - HALF).max() <= 3  # YCbCr rounds


def test_what_is_transparent_is_white() -> None:
    clear = np.zeros((6, 6, 4), np.uint8)
    clear[:, 3:, 3] = 255
    assert (decode_image(encoded(Image.fromarray(clear)), GREY)[0] == 255 - HALF).all()
    palette = Image.fromarray(HALF).convert("P")
    assert (decode_image(encoded(palette, transparency=0), GREY)[0] == 255).all()


def test_paper_and_ink_are_inverted() -> None:
    assert (decode_image(HALF, ImageSpec(6, 1, inverted=True))[0] == 255 - HALF).all()


def test_a_photograph_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    found = decode_image(encoded(Image.fromarray(HALF), "JPEG", exif=exif, quality=100), GREY)[0]
    assert found[0].max() < 20 and found[-1].min() > 235


def test_any_size_is_brought_to_one(tmp_path: Path) -> None:
    wide = Image.fromarray(HALF).resize((60, 12), Image.Resampling.NEAREST)
    wide.save(tmp_path / "a.webp", lossless=True)
    assert np.abs(decode_image(tmp_path / "a.webp", COLOUR).astype(int) - HALF).max() < 30  # as the edge is smoothed


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"no picture", "not a picture of a known format"),
        (b"", "not a picture of a known format"),
        (encoded(Image.fromarray(HALF).resize((60, 60)))[:-60], "."),
        (encoded(Image.fromarray(HALF.astype(np.float32)), "TIFF"), "floating-point"),
        (np.zeros((0, 5), np.uint8), "."),
        (np.zeros((5, 5, 7), np.uint8), "."),
    ],
    ids=["text", "empty", "truncated", "floats", "array without rows", "array of seven colours"],
)
def test_what_is_no_picture_is_told(raw: bytes | np.ndarray, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        decode_image(raw, GREY)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        decode_image(tmp_path / "none.png", GREY)


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Unreadable, match="decompression bomb"):
        decode_image(encoded(Image.fromarray(HALF)), GREY)
