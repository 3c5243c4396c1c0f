"""Fonts for text in matplotlib's pictures: letters of any script are drawn, or escaped if no font has them."""

import unicodedata
from collections.abc import Iterable
from functools import cache

from matplotlib.font_manager import fontManager, get_font

from metarun.utils.text import printable

FIRST = "DejaVu Sans"  # comes with matplotlib
UPRIGHT = (("normal", 400), ("normal", "normal"))  # style and weight
UNUSABLE = ("Last Resort", "Color Emoji", "ColorEmoji")  # boxes for letters; bitmaps, which matplotlib cannot draw


def drawable(text: object) -> str:
    """`printable`, with each letter that no installed font has as its escape, such as `\\u4e2d`; marks are left out."""
    return "".join(letter if family_of(letter) else escape(letter) for letter in printable(text))


def families(texts: Iterable[object]) -> list[str]:
    """Font families that together have the letters of the `drawable` texts, for matplotlib's `fontfamily`."""
    letters = sorted({letter for text in texts for letter in drawable(text)})
    return list(dict.fromkeys([FIRST, *(family for letter in letters if (family := family_of(letter)))]))


def escape(letter: str) -> str:
    return "" if unicodedata.category(letter) in ("Mn", "Cf") else letter.encode("unicode_escape").decode("ascii")


@cache
def family_of(letter: str) -> str | None:
    """The first installed font family that has the letter, beginning with matplotlib's own; None if there is none."""
    return next((name for name, path in upright_fonts() if ord(letter) in code_points(path)), None)


@cache
def upright_fonts() -> list[tuple[str, str]]:
    """Names and files of the installed fonts of normal style and weight, matplotlib's own first."""
    fonts = {(font.name, font.fname) for font in fontManager.ttflist if (font.style, font.weight) in UPRIGHT}
    usable = [font for font in fonts if not any(word in font[0] for word in UNUSABLE)]
    return sorted(usable, key=lambda font: (font[0] != FIRST, *font))


@cache
def code_points(path: str) -> frozenset[int]:
    """Letters of a font file; none if it is no longer there or matplotlib cannot read it."""
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
