"""Checkpoints that someone made to do harm: each is refused in one line, at once, in little memory."""

from __future__ import annotations

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun import checkpoint, untrusted
from metarun.data import likeness
from metarun.errors import UserError
from metarun.groups import Anil, Boil, Conv4, Glyphs, L2f, Maml, Mlp, Msgd, Mtnet, Warpgrad
from metarun.network import build_learner, require_same_shapes
from metarun.schema import Settings

MEBIBYTE = 2**20
HARMLESS = {
    "theta": {"w": torch.arange(6.0).reshape(2, 3), "transposed": torch.arange(6.0).reshape(2, 3).T},
    "kinds": [
        torch.ones(3, dtype=getattr(torch, name)) for name in ("float64", "float16", "bfloat16", "int64", "uint8")
    ],
    "empty": torch.empty(0, 3),
    "number": torch.tensor(7),
    "part": torch.arange(10.0)[3:7],
    "plain": {"a": [1, -(2**62), 0.5, "ä", None, True], 3: (1, (2,), (), (1, 2, 3, 4))},
    "ordered": OrderedDict(a=1),
}


# --- what a harmful file is made of ------------------------------------------------------------------------


def name(module: str, last: str) -> bytes:
    return f"c{module}\n{last}\n".encode()


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def several(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def storage(count: int, kind: str = "FloatStorage") -> bytes:
    return several(text("storage"), name("torch", kind), text("0"), text("cpu"), number(count)) + b"Q"


def tensor(count: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    shape = [several(*map(number, values)) for values in (size, stride)]
    rest = [b"\x89", name("collections", "OrderedDict") + b")R"]
    return name("torch._utils", "_rebuild_tensor_v2") + several(storage(count), number(offset), *shape, *rest) + b"R"


def program(value: bytes) -> bytes:
    """{"format": FORMAT, "w": value} as a pickle."""
    return b"\x80\x02}" + text("format") + b"K" + bytes([checkpoint.FORMAT]) + b"s" + text("w") + value + b"s."


def written(path: Path, pickled: bytes, data: bytes = bytes(16), compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of the parts that a checkpoint has, with the end that torch gives it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for part, content in (("data.pkl", pickled), ("byteorder", b"little"), ("data/0", data), ("version", b"3\n")):
            archive.writestr(f"a/{part}", content)
    path.write_bytes(ended(file.getvalue()))
    return path


def ended(archive: bytes) -> bytes:
    """The same zip with the directory of zip64 that torch.save writes."""
    count, size, start = struct.unpack("<10xHII2x", archive[-22:])
    directory = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    return archive[:-22] + directory + struct.pack("<4sIQI", b"PK\x06\x07", 0, len(archive) - 22, 1) + archive[-22:]


LAUGHS = b"".join(b"](" + bytes([ord("h"), k]) * 10 + b"eq" + bytes([k + 1]) for k in range(18))
HARMFUL = {
    "a storage that claims 10**12 elements": tensor(10**12, (10**12,), (1,)),
    "a storage that claims more than its part": tensor(5, (5,), (1,)),
    "a shape larger than its storage": tensor(4, (10**6, 10**6), (10**6, 1)),
    "an expanded view": tensor(4, (10**6, 10**6), (0, 0)),
    "a view beyond its storage": tensor(4, (2, 2), (3, 1)),
    "an offset beyond its storage": tensor(4, (4,), (1,), offset=1),
    "a negative offset": tensor(4, (1,), (1,), offset=-3),
    "a negative stride": tensor(4, (4,), (-1,), offset=3),
    "very many dimensions": tensor(4, (1,) * 10**4, (1,) * 10**4),
    "two tensors of one storage": several(tensor(4, (4,), (1,)), tensor(4, (4,), (1,))),
    "a complex tensor": tensor(2, (2,), (1,)).replace(b"FloatStorage", b"ComplexFloatStorage"),
    "a quantised tensor": tensor(16, (16,), (1,)).replace(b"FloatStorage", b"QInt8Storage"),
    "a sparse tensor": name("torch._utils", "_rebuild_sparse_tensor") + several(b"N", b"N") + b"R",
    "a tensor without data": name("torch._utils", "_rebuild_meta_tensor_no_storage")
    + several(name("torch", "float32"), several(number(10**9)), several(number(1)), b"\x89")
    + b"R",
    "a bytearray of 10 GB": name("builtins", "bytearray") + several(number(10**10)) + b"R",
    "a command": name("os", "system") + several(text("touch ran")) + b"R",
    "a state for a tensor": tensor(4, (4,), (1,)) + several(b"N") + b"b",
    "a state for a dict": b"}}" + text("x") + b"Nsb",
    "a parameter of too little": name("torch._utils", "_rebuild_parameter") + several(b"N") + b"R",
    "a billion laughs": several(b"]q\0", LAUGHS),
    "a list in itself": b"]q\1h\1a",
    "deep nesting": b"]" * 10**5 + b"a" * (10**5 - 1),
    "very many values": b"](" + b"]" * (10**6 + 1) + b"e",
    "a number of 255 bytes": b"\x8a\xff" + b"\1" * 255,
    "names whose hashes collide": b"}(" + several(number(-1)) + b"N" + several(number(-2)) + b"Nu",
    "a memo of 2**31 entries": b"]r\xff\xff\xff\x7f" + b"j\xff\xff\xff\x6f",
    "a string of 4 GB": b"X\xff\xff\xff\xff",
    "a call of a tensor": tensor(4, (4,), (1,)) + b")R",
    "a name left over": name("torch", "FloatStorage"),
    "a mark that is not there": b"u",
    "nothing to take": b"0000",
}  # fmt: skip


@pytest.mark.parametrize("what", HARMFUL)
def test_a_harmful_pickle_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(written(tmp_path / "evil.pt", program(HARMFUL[what])))
    assert not (tmp_path / "ran").exists()


def refused(path: Path) -> str:
    began = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"checkpoint .*{path.name}: cannot be read.*") as raised:
            checkpoint.load(path)
        assert tracemalloc.get_traced_memory()[1] < 200 * MEBIBYTE
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - began < 30  # tracing makes it some ten times slower
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_compressed_parts_are_refused(tmp_path: Path) -> None:
    bomb = tensor(25 * 10**6, (25 * 10**6,), (1,))
    path = written(tmp_path / "bomb.pt", program(bomb), bytes(10**8), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MEBIBYTE
    assert "compressed" in refused(path)


def test_parts_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "over.pt", program(b"N"), bytes(10**5))
    content = path.read_bytes()
    start = content.index(b"PK\1\2")
    entry = content.index(b"PK\1\2", content.index(b"a/data/0", start) - 60)
    size = 46 + len("a/data/0")
    path.write_bytes(larger_directory(content, entry, content[entry : entry + size] * 40))
    assert "more than its" in refused(path)


def test_very_many_parts_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    content = written(tmp_path / "many.pt", program(b"N")).read_bytes()
    entry = content.index(b"PK\1\2")
    (tmp_path / "many.pt").write_bytes(larger_directory(content, entry, content[entry : entry + 56] * 10**5))
    assert "its list of parts has" in refused(tmp_path / "many.pt")


def larger_directory(content: bytes, place: int, more: bytes) -> bytes:
    """A zip whose directory holds `more`, with an end that says so."""
    end = content.index(b"PK\x06\x06")
    (size,) = struct.unpack_from("<Q", content, end + 40)
    tail = bytearray(content[end:])
    struct.pack_into("<Q", tail, 40, size + len(more))
    struct.pack_into("<Q", tail, 56 + 8, end + len(more))
    return content[:place] + more + content[place:end] + bytes(tail)


def test_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "big.pt", program(b"N"))
    path.write_bytes(rebuilt(path, byteorder=b"big"))
    assert "byte order" in refused(path)


def rebuilt(path: Path, **parts: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(file, "w") as new:
        for part in old.namelist():
            new.writestr(part, parts.get(part.removeprefix("a/"), old.read(part)))
    return ended(file.getvalue())


# --- what is no harm ---------------------------------------------------------------------------------------


def test_the_harmless_file_that_harm_is_written_into_loads(tmp_path: Path) -> None:
    """So that the files above are refused for the harm in them."""
    path = written(tmp_path / "good.pt", program(tensor(4, (2, 2), (2, 1))), struct.pack("<4f", 1, 2, 3, 4))
    assert torch.equal(checkpoint.load(path)["w"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_plain_content_comes_back_as_torch_load_reads_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", HARMLESS)
    found = checkpoint.load(tmp_path / "a.pt")
    expected = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(found) == list(expected)
    for key in ("theta", "kinds", "empty", "number", "part"):
        torch.testing.assert_close(found[key], HARMLESS[key], rtol=0, atol=0)
    assert found["plain"] == HARMLESS["plain"] and found["ordered"] == {"a": 1}
    assert found["theta"]["transposed"].is_contiguous()
    found["theta"]["w"].add_(1)  # memory of its own


def test_a_large_file_is_checked_a_piece_at_a_time(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", {"w": torch.zeros(2**24)})
    tracemalloc.start()
    try:
        assert checkpoint.damage(tmp_path / "a.pt") is None
        assert tracemalloc.get_traced_memory()[1] < 8 * MEBIBYTE
        tracemalloc.clear_traces()
        tracemalloc.reset_peak()
        checkpoint.load(tmp_path / "a.pt")
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**26  # what it holds is 2**26 bytes
    finally:
        tracemalloc.stop()


def test_code_of_python_s_own_pickle_is_refused(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        refused(written(tmp_path / "evil.pt", pickle.dumps({"format": checkpoint.FORMAT, "w": print}, protocol)))


# --- a network that a checkpoint's settings ask for --------------------------------------------------------

LOOK = {"size": 28, "channels": 1, "inverted": False, "normalise": False, "mean": [0.0], "deviation": [1.0]}
METHODS = [
    *(Maml(), Msgd(start="random"), Msgd(alpha="scalar"), Mtnet(), Mtnet(full=True), L2f(), Anil(), Boil()),
    *(Warpgrad(), Warpgrad(start="identity", depth=2), Warpgrad(objective="trajectory")),
]


def saved_by(settings: Settings) -> tuple[Any, dict[str, Any]]:
    """A source of pictures, and what a checkpoint of a run with these settings holds."""
    source = likeness.source_like(LOOK, torch.device("cpu"))
    parameters = build_learner(settings, source, source.device).method.parameters
    return source, {kind: dict(part) for kind, part in parameters._asdict().items()}


@pytest.mark.parametrize("backbone", [Mlp(hidden=[8]), Conv4(filters=4), Conv4(filters=4, downsample="stride")])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method_s_own_shapes_are_the_same(method: Any, backbone: Any) -> None:
    settings = Settings(dataset=Glyphs(), backbone=backbone, method=method)
    source, content = saved_by(settings)
    before = torch.random.get_rng_state()
    require_same_shapes(settings, source, content, "x.pt")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("large", [Mlp(hidden=[10**5] * 2), Mlp(hidden=[1] * 10**6), Conv4(filters=10**5)])
def test_a_giant_network_is_refused_before_it_is_made(method: Any, large: Any) -> None:
    settings = Settings(dataset=Glyphs(), backbone=Mlp(hidden=[8, 8]), method=method)
    source, content = saved_by(settings)
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"x\.pt: of another architecture"):
        require_same_shapes(replace(settings, backbone=large, ways=10**5), source, content, "x.pt")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("damaged", [None, [], {"w": 1}, {"w": torch.ones(2, dtype=torch.int64)}])
def test_parameters_that_are_none_are_told(damaged: Any) -> None:
    settings = Settings(dataset=Glyphs(), backbone=Mlp(hidden=[8]), method=Maml())
    source, content = saved_by(settings)
    with pytest.raises(UserError, match=r"checkpoint x\.pt: cannot be read: its theta is damaged"):
        require_same_shapes(settings, source, {**content, "theta": damaged}, "x.pt")


def test_a_checkpoint_that_asks_for_a_giant_network_allocates_none(tmp_path: Path, monkeypatch) -> None:
    from metarun import work
    from metarun.groups import Sinusoid

    giant = Settings(dataset=Sinusoid(), backbone=Mlp(hidden=[10**5, 10**5]), method=Maml(), device="cpu")
    checkpoint.save(tmp_path / "giant.pt", {"config": asdict(giant), "theta": {"w": torch.ones(2)}, "phi": {}})
    with pytest.raises(UserError, match=r"giant\.pt: of another architecture"):
        work.build(giant, taking=tmp_path / "giant.pt")


def test_refusals_say_what_is_wrong() -> None:
    with pytest.raises(untrusted.Refused, match="plain data"):
        untrusted.require_plain({"a": [object()]})
