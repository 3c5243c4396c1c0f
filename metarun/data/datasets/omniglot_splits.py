"""Omniglot's alphabets and its splits into training, validation and test characters."""

import hashlib

BACKGROUND = {  # alphabet: its number of characters
    "Alphabet_of_the_Magi": 20,
    "Anglo-Saxon_Futhorc": 29,
    "Arcadian": 26,
    "Armenian": 41,
    "Asomtavruli_(Georgian)": 40,
    "Balinese": 24,
    "Bengali": 46,
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
    "Braille": 26,
    "Burmese_(Myanmar)": 34,
    "Cyrillic": 33,
    "Early_Aramaic": 22,
    "Futurama": 26,
    "Grantha": 43,
    "Greek": 24,
    "Gujarati": 48,
    "Hebrew": 22,
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    "Japanese_(hiragana)": 52,
    "Japanese_(katakana)": 47,
    "Korean": 40,
    "Latin": 26,
    "Malay_(Jawi_-_Arabic)": 40,
    "Mkhedruli_(Georgian)": 41,
    "N_Ko": 33,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
    "Sanskrit": 42,
    "Syriac_(Estrangelo)": 23,
    "Tagalog": 17,
    "Tifinagh": 55,
}
EVALUATION = {
    "Angelic": 20,
    "Atemayar_Qelisayer": 26,
    "Atlantean": 26,
    "Aurek-Besh": 26,
    "Avesta": 26,
    "Ge_ez": 26,
    "Glagolitic": 45,
    "Gurmukhi": 45,
    "Kannada": 41,
    "Keble": 26,
    "Malayalam": 47,
    "Manipuri": 40,
    "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Sylheti": 28,
    "Syriac_(Serto)": 23,
    "Tengwar": 25,
    "Tibetan": 42,
    "ULOG": 26,
}
VINYALS_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST = ("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya")
VINYALS_TEST += ("Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG")


def characters(alphabets: dict[str, int]) -> list[str]:
    """All characters of the alphabets, named like "Latin/character01"."""
    return [f"{name}/character{n:02}" for name, count in alphabets.items() for n in range(1, count + 1)]


def shuffled(names: list[str]) -> list[str]:
    """Names in a pseudo-random order that is the same everywhere: sorted by SHA-256."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def vinyals() -> dict[str, list[str]]:
    """1028/172/423 characters by alphabet (Vinyals et al. 2016, as torchmeta has it); only Gurmukhi is divided."""
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in characters(BACKGROUND | EVALUATION):
        alphabet, character = name.split("/")
        divided = alphabet == "Gurmukhi" and character > "character41"
        part = "val" if alphabet in VINYALS_VAL else "test" if alphabet in VINYALS_TEST or divided else "train"
        parts[part].append(name)
    return parts


def maml() -> dict[str, list[str]]:
    """1100/100/423 characters at random. The original's shuffle followed a file system's order: it is not this one."""
    names = shuffled(characters(BACKGROUND | EVALUATION))
    return {"train": names[:1100], "val": names[1100:1200], "test": names[1200:]}


def lake() -> dict[str, list[str]]:
    """864/100/659: the background set, the evaluation set (Lake et al. 2015).

    Lake's division has no validation set: 100 of the 964 background characters, drawn at random, are held out for it.
    """
    names = shuffled(characters(BACKGROUND))
    return {"train": names[100:], "val": names[:100], "test": characters(EVALUATION)}


SPLITS = {"vinyals": vinyals, "maml": maml, "lake": lake}
