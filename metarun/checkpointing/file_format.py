"""The file of a checkpoint: safetensors, whose header holds all that is no tensor as JSON, and one SHA-256 over both.

    8 bytes             length of the header, little-endian
    header              JSON: dtype, shape and data_offsets of each tensor by its name, and "__metadata__":
                        "format", "content" (JSON), "sha256" (hexadecimal)
    data                the tensors one after another, without gaps

The digest is over `digested`, which is canonical, and the data. Any program that knows safetensors reads the tensors.
Whoever made a file, reading it runs nothing, and takes no more memory than the file has bytes, and 64 MiB.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from metarun.utils.safe_files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "metarun checkpoint 3"
LENGTH = struct.Struct("<Q")
LARGEST_HEADER = 2**22  # bytes; a tensor takes some 120
LARGEST_CONTENT = 2**20  # characters of the JSON beside the tensors
MOST_VALUES = 300_000  # of the header, names and brackets counted: each may become some 80 bytes of memory
DEEPEST = 16  # levels of nested lists and objects
MOST_TENSORS = 2**14
MOST_AXES = 8
MOST_ELEMENTS = 2**48
PIECE = 2**20  # bytes that are hashed at a time
DTYPES = {  # safetensors' name: torch's name, bytes
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "U8": ("uint8", 1),
}
CODES = {name: code for code, (name, _) in DTYPES.items()}


class Refused(Exception):
    """The file is no whole checkpoint; the message says what is wrong with it, to follow its name."""


class Entry(NamedTuple):
    """A tensor, as the header describes it; `begin` and `end` are offsets into the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def encoded(content: Any, tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a file that holds plain `content` (what JSON holds) and tensors of any device.

    Raises:
        ValueError: a tensor of a dtype that is not in `DTYPES`, or more than a file may hold.
    """
    entries, parts, end = [], [], 0
    sizes = {name: tensor.element_size() for name, tensor in tensors.items()}
    for name in sorted(tensors, key=lambda name: (-sizes[name], name)):  # so that each lies at a multiple of its size
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in CODES:
            raise ValueError(f"its tensor {name} is of type {dtype}; a checkpoint holds {', '.join(CODES)}")
        begin, end = end, end + tensor.numel() * sizes[name]
        entries.append(Entry(name, CODES[dtype], tuple(tensor.shape), begin, end))
        parts.append(raw(tensor))
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    digest = hashlib.sha256(digested(text, entries))
    for part in parts:
        digest.update(part)
    metadata = {"format": FORMAT, "content": text, "sha256": digest.hexdigest()}
    table = {e.name: {"dtype": e.dtype, "shape": e.shape, "data_offsets": [e.begin, e.end]} for e in entries}
    header = json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % LENGTH.size)
    try:
        if len(header) > LARGEST_HEADER or len(text) > LARGEST_CONTENT:
            raise Refused(f"its header has {len(header)} bytes")
        described(parsed(header), end)
    except Refused as error:
        raise ValueError(f"{error}: the network has more tensors than a checkpoint holds") from error
    return b"".join([LENGTH.pack(len(header)), header, *parts])


def digested(content: str, entries: list[Entry]) -> bytes:
    """What the digest is over, before the data."""
    return json.dumps([FORMAT, content, sorted(entries)], separators=(",", ":")).encode()


def raw(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(bytearray())


def content_of(path: Path) -> Any:
    """The plain content of a checkpoint, behind its digest; the tensors' bytes are looked at a piece at a time.

    Raises:
        Refused: the file is no whole checkpoint of this format.
        OSError: it cannot be read.
    """
    return read(path, with_tensors=False)[0]


def read(path: Path, with_tensors: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """Plain content and tensors (on the CPU) of a checkpoint, behind its digest. Raises as `content_of`."""
    with open_regular(path) as file:
        metadata, entries = header_of(file)
        if metadata.get("format") != FORMAT:
            raise Refused(f"is no checkpoint of this version of metarun ({FORMAT})")
        if metadata.keys() != {"format", "content", "sha256"} or len(metadata["content"]) > LARGEST_CONTENT:
            raise Refused("is damaged: its header holds something else than a checkpoint's")
        text = metadata["content"]
        digest = hashlib.sha256(digested(text, entries))
        tensors: dict[str, Tensor] = {}
        if with_tensors:
            for name, tensor, memory in read_tensors(file, entries):
                digest.update(memory)
                tensors[name] = tensor
        else:
            memory = memoryview(bytearray(PIECE))
            for first in range(0, entries[-1].end if entries else 0, PIECE):
                piece = memory[: min(PIECE, entries[-1].end - first)]
                fill(file, piece)
                digest.update(piece)
    if digest.hexdigest() != metadata["sha256"]:
        raise Refused("is damaged: its bytes are not those that its SHA-256 is of")
    return parsed(text.encode("utf-8", "surrogatepass")), tensors


def is_checkpoint(path: Path) -> bool:
    """Whether a file says that it is a checkpoint of metarun, of whatever version. Raises as `content_of`."""
    if path.suffix != ".safetensors":
        return False
    with open_regular(path) as file:
        return header_of(file)[0].get("format", "").startswith(FORMAT.rstrip("0123456789"))


def foreign_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of anyone's safetensors file. Raises as `content_of`."""
    with open_regular(path) as file:
        return {name: tensor for name, tensor, _ in read_tensors(file, header_of(file)[1])}


def header_of(file: BinaryIO) -> tuple[dict[str, str], list[Entry]]:
    """The metadata, and the tensors in the order of their data, at which the file then stands."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(LENGTH.size)
    if start.startswith(b"PK"):
        raise Refused(
            "is a file of torch.save, as earlier versions of metarun wrote them; this version reads checkpoints that "
            "end in .safetensors: go on with the version that wrote it, or train again"
        )
    if len(start) < LENGTH.size:
        raise Refused(f"is cut short or none: it has {size} bytes")
    (length,) = LENGTH.unpack(start)
    if length > LARGEST_HEADER:
        raise Refused(f"is damaged or none: its header would have {length} bytes, {LARGEST_HEADER} are the most")
    if LENGTH.size + length > size:
        raise Refused(f"is cut short or none: it has {size} bytes, its header ends at {LENGTH.size + length}")
    return described(parsed(file.read(length)), size - LENGTH.size - length)


def described(header: Any, size: int) -> tuple[dict[str, str], list[Entry]]:
    """Metadata and tensors of a header, whose data has `size` bytes. Raises Refused where it is not safetensors'."""
    if not isinstance(header, dict):
        raise Refused("is damaged: its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Refused("is damaged: the metadata in its header is not text")
    if len(header) > MOST_TENSORS:
        raise Refused(f"has {len(header)} tensors, {MOST_TENSORS} are the most")
    entries = sorted((entry_of(name, value) for name, value in header.items()), key=lambda e: (e.begin, e.end, e.name))
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise Refused(f"is damaged: its tensor {entry.name!r} does not begin where the one before it ends")
        end = entry.end
    if end != size:
        raise Refused(f"is cut short or damaged: its tensors have {end} bytes, the file has {size} for them")
    return metadata, entries


def entry_of(name: str, value: Any) -> Entry:
    """Raises Refused where dtype, shape and size do not fit each other."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"is damaged: its header does not describe tensor {name!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Refused(f"is damaged, or of another kind: tensor {name!r} is of type {str(dtype)[:20]!r}, "
                      f"known are {', '.join(DTYPES)}")  # fmt: skip
    for numbers, most in ((shape, MOST_AXES), (offsets, 2)):
        if not isinstance(numbers, list) or len(numbers) > most or not all(type(n) is int and n >= 0 for n in numbers):
            raise Refused(f"is damaged: shape or offsets of tensor {name!r} are no sizes")
    if math.prod(max(n, 1) for n in shape) > MOST_ELEMENTS or len(offsets) != 2:
        raise Refused(f"is damaged: shape or offsets of tensor {name!r} are no sizes")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype][1]:
        raise Refused(f"is damaged: tensor {name!r} of shape {shape} does not take {end - begin} bytes")
    return Entry(name, dtype, tuple(shape), begin, end)


def read_tensors(file: BinaryIO, entries: list[Entry]) -> Iterator[tuple[str, Tensor, memoryview]]:
    """Each tensor, and its memory, in the order in which they lie in the file."""
    import torch

    for entry in entries:
        try:
            tensor = torch.empty(entry.shape, dtype=getattr(torch, DTYPES[entry.dtype][0]))
        except (RuntimeError, MemoryError) as error:
            raise Refused(f"needs more memory than there is: {entry.end - entry.begin} bytes for a tensor") from error
        memory = raw(tensor)
        fill(file, memory)
        yield entry.name, tensor, memory


def fill(file: BinaryIO, memory: memoryview) -> None:
    if file.readinto(memory) != len(memory):  # type: ignore[attr-defined]
        raise Refused("is cut short: it became shorter while it was read")


# --- JSON ----------------------------------------------------------------------------------------------------


def parsed(text: bytes) -> Any:
    """JSON of a bounded size and depth, with finite numbers of 64 bits and no name twice in an object.

    Raises:
        Refused: it is something else.
    """
    if not text.isascii():
        raise Refused("is damaged: its header is not ASCII")
    if sum(text.count(sign) for sign in (b",", b":", b"[", b"{")) > MOST_VALUES:
        raise Refused(f"holds more than {MOST_VALUES} values in its header")
    require_flat(text)
    hooks = {"parse_int": whole, "parse_float": finite, "parse_constant": no_number, "object_pairs_hook": unambiguous}
    try:
        return json.loads(text, **hooks)
    except (ValueError, RecursionError) as error:
        raise Refused(f"is damaged: its header is no JSON ({str(error)[:80]})") from error


def require_flat(text: bytes) -> None:
    """Raises Refused where lists and objects are nested deeper than `DEEPEST`."""
    level, within = 0, False
    for match in re.finditer(rb'\\.|["\[\]{}]', text, re.DOTALL):
        sign = match[0]
        if sign == b'"':
            within = not within
        elif not within:
            level += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(sign, 0)
            if level > DEEPEST:
                raise Refused(f"is damaged: its header is nested deeper than {DEEPEST} levels")


def whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise Refused("is damaged: its header holds a whole number of more than 64 bits")
    return int(text)


def finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise Refused("is damaged: its header holds a number that is not finite")
    return value


def no_number(text: str) -> Any:
    raise Refused(f"is damaged: its header holds {text}, which is no JSON")


def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused("is damaged: its header says something twice")
    return found
