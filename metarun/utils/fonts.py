"""Fonts for text in matplotlib's pictures: letters of any script are drawn, or escaped where no font has them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

from matplotlib.font_manager import FontEntry, fontManager, get_font

from metarun.utils.text import printable

FIRST = "DejaVu Sans"  # comes with matplotlib
UNUSABLE = ("Last Resort", "Color Emoji", "ColorEmoji")  # boxes for letters; bitmaps, which matplotlib cannot draw


def drawable(text: object) -> str:
    """`printable`, with letters that no installed font has as their escape, such as `\\u4e2d`.

    Of those, marks without width are left out.
    """
    return "".join(letter if family_of(letter) else escape(letter) for letter in printable(text))


def families(texts: Iterable[object]) -> list[str]:
    """Font families that together have the letters of the `drawable` texts, for matplotlib's `fontfamily`."""
    letters = sorted({letter for text in texts for letter in drawable(text)})
    return list(dict.fromkeys([FIRST, *(family for letter in letters if (family := family_of(letter)))]))


def escape(letter: str) -> str:
    return "" if unicodedata.category(letter) in ("Mn", "Cf") else letter.encode("unicode_escape").decode("ascii")


@cache
def family_of(letter: str) -> str | None:
    """An installed font family that has the letter, matplotlib's own first; None where there is none."""
    return next((font.name for font in upright() if ord(letter) in letters_of(font.fname)), None)


@cache
def upright() -> list[FontEntry]:
    fonts = [font for font in fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal")]
    usable = [font for font in fonts if not any(word in font.name for word in UNUSABLE)]
    return sorted(usable, key=lambda font: (font.name != FIRST, font.name, font.fname))


@cache
def letters_of(file: str) -> frozenset[int]:
    """Code points; none of a font file that is no longer there or that matplotlib cannot read."""
    try:
        return frozenset(get_font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
