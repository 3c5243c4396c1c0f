from __future__ import annotations

import contextlib
import pickle
import pickletools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from metarun.data.formats.pickles import load_pickle
from metarun.errors import UserError


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_arrays_and_containers_come_back(tmp_path: Path, protocol: int) -> None:
    content = {
        "data": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "big": np.arange(3, dtype=">i8"),
        "names": np.array(["ä", "b"]),
        "rows": np.array([{"a": 1}, [2]], dtype=object),
        "labels": [1, 2],
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = load_pickle(path)
    assert found.keys() == content.keys() and found["labels"] == [1, 2]
    for name in ("data", "big", "names", "rows"):
        assert found[name].dtype.kind == content[name].dtype.kind
        assert (np.asarray(found[name]) == content[name]).all()


def test_a_dtype_that_lies_is_not_believed(tmp_path: Path) -> None:
    """An array of bytes whose pickled dtype claims to need the care of objects comes back as plain bytes."""
    honest = pickle.dumps(np.arange(16, dtype=np.uint8), 0)
    lying = honest.replace(b"I-1\nI-1\nI0\ntp", b"I-1\nI-1\nI63\ntp")
    assert lying != honest and list(pickletools.genops(lying))
    path = tmp_path / "a.pkl"
    path.write_bytes(lying)
    found = load_pickle(path)
    assert found.dtype.flags == np.dtype(np.uint8).flags and found.tolist() == list(range(16))


def test_arrays_of_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(np.zeros(3, dtype=[("a", object), ("b", "i4")])))
    with pytest.raises(UserError, match=r"a\.pkl: not a pickle of arrays.*it holds an array of"):
        load_pickle(path)


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def word(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


NDARRAY, DTYPE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
BEGIN = RECONSTRUCT + NDARRAY + b"K\x00\x85" + word("b") + b"\x87R"  # an empty array, before its state


def dtype(name: str) -> bytes:
    return DTYPE + word(name) + b"K\x00K\x01\x87R(K\x03" + word("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def state(shape: bytes, name: str, content: bytes) -> bytes:
    return b"(K\x01" + shape + dtype(name) + b"\x89" + content + b"tb"


ATTACKS = {
    "an array of pointers by its constructor": opcodes(NDARRAY, b"K\x01\x85", word("O8"), word("A" * 8), b"\x87R"),
    "the constructor by NEWOBJ": opcodes(NDARRAY, b"K\x01\x85", word("O8"), word("A" * 8), b"\x87\x81"),
    "the constructor by OBJ": opcodes(b"(", NDARRAY, b"K\x01\x85", word("O8"), word("A" * 8), b"o"),
    "the constructor by INST": opcodes(b"(K\x01\x85", word("O8"), word("A" * 8), b"inumpy\nndarray\n"),
    "pointers as an array's bytes": opcodes(BEGIN, state(b"K\x01\x85", "O8", word("A" * 8))),
    "pointers as a scalar": opcodes(b"cnumpy.core.multiarray\nscalar\n", dtype("O8"), word("A" * 8), b"\x86R"),
    "pointers by _frombuffer": opcodes(
        b"cnumpy.core.numeric\n_frombuffer\n(", word("A" * 8), dtype("O8"), b"K\x01\x85", word("C"), b"tR"
    ),
    "another subtype": opcodes(RECONSTRUCT, DTYPE, b"K\x00\x85", word("b"), b"\x87R"),
    "an array that begins full": opcodes(RECONSTRUCT, NDARRAY, b"J\x00\x00\x00\x40\x85", word("b"), b"\x87R"),
    "too few bytes": opcodes(BEGIN, state(b"K\x04\x85", "u1", word("A" * 3))),
    "too many bytes": opcodes(BEGIN, state(b"K\x04\x85", "u1", word("A" * 5))),
    "a negative shape": opcodes(BEGIN, state(b"J\xff\xff\xff\xff\x85", "u1", word(""))),
    "two negative lengths": opcodes(BEGIN, state(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", "u1", word("A"))),
    "a huge shape of nothing": opcodes(BEGIN, state(b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\x00\x86", "u1", word(""))),
    "text without letters": opcodes(BEGIN, state(b"J\x00\x00\x00\x40\x85", "S0", word(""))),
    "letters that there are not": opcodes(BEGIN, state(b"K\x01\x85", "U1", word("zzzz"))),
    "a dtype by a dict": opcodes(DTYPE, b"}\x85R"),
    "a dtype of records": opcodes(DTYPE, word("V8"), b"K\x00K\x01\x87R"),
    "a dtype by its fields": opcodes(DTYPE, word("O,i4"), b"K\x00K\x01\x87R"),
    "a module": opcodes(b"cos\nsystem\n", word("true"), b"\x85R"),
    "a function of numpy's": opcodes(b"cnumpy\nload\n", word("x"), b"\x85R"),
    "an encoding's module": opcodes(b"c_codecs\nencode\n", word("x"), word("idna"), b"\x86R"),
    "a part of a function": opcodes(b"\x8c\x16numpy.core.multiarray\x8c\x15_reconstruct.__code__\x93"),
    "settings of a function": opcodes(RECONSTRUCT, b"N}", word("_call"), b"Ns\x86b"),
    "settings of an array": opcodes(BEGIN, b"}b"),
    "an extension": opcodes(b"\x82\x01"),
    "a persistent name": opcodes(word("x"), b"Q"),
    "as many memos as 34 GB": opcodes(b"]r\xff\xff\xff\x7f"),  # refused or not, it takes no room
    "8 exabytes": opcodes(b"\x8e" + b"\xff" * 7 + b"\x7f"),
    "8 exabytes to fill": opcodes(b"\x96" + b"\xff" * 7 + b"\x7f"),
    "a frame of 8 exabytes": opcodes(b"\x95" + b"\xff" * 7 + b"\x7f"),
    "a key so deep that its hash overflows": opcodes(b"})", b"\x85" * 200_000, b"Ns"),
    "millions of lists": opcodes(b"(", b"]" * 2**22, b"l"),
    "nothing to take": opcodes(b"\x85a"),
}
HARMLESS = ("as many memos as 34 GB", "a frame of 8 exabytes")


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in HARMLESS])
def test_a_pickle_that_is_no_data_is_refused_in_one_line(tmp_path: Path, attack: str) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(ATTACKS[attack])
    with pytest.raises(UserError, match=r"a\.pkl: not a pickle of arrays, or damaged") as refused:
        load_pickle(path)
    assert "\n" not in str(refused.value)


def test_a_pickle_takes_no_more_memory_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for attack in (attack for attack in ATTACKS.values() if len(attack) < 2**20):
        path.write_bytes(attack)
        tracemalloc.start()
        with contextlib.suppress(UserError):
            load_pickle(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol_writes_what_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    content = {
        b"data": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "numbers": [np.float64(0.5), np.int64(-3), np.uint8(7), 2.5, True, None, 2**70],
        "bytes": [b"", b"\xff\x00", b"x" * 300],
        "text": np.array([b"ab", b"c"]),
        "nested": {"a": (1, (2, [3])), "empty": np.zeros((0, 3), np.uint8)},
    }
    path.write_bytes(pickle.dumps(content, protocol))
    found = load_pickle(path)
    for name in (b"data", "columns", "text"):
        assert np.array_equal(found[name], content[name]) and found[name].dtype == content[name].dtype
    for name in ("numbers", "bytes"):
        assert found[name] == content[name]
    assert found["nested"]["a"] == (1, (2, [3])) and found["nested"]["empty"].shape == (0, 3)


def test_python_2_wrote_arrays_and_text_as_strings(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(opcodes(BEGIN, state(b"K\x02K\x02\x86", "u1", word("\x01\x02\x7f\x04"))))
    assert load_pickle(path).tolist() == [[1, 2], [127, 4]]
