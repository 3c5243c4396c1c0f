"""The checkpoint file: safetensors, with everything but tensors as JSON in its header, and a SHA-256 over both.

    8 bytes             length of the header, little-endian
    header              JSON: dtype, shape and data_offsets of each tensor by its name, and "__metadata__":
                        "format", "content" (JSON), "sha256" (hexadecimal)
    data                the tensors one after another, without gaps

The digest is over `digest_input`, which is canonical, and the data. Any reader of safetensors can read the tensors.
Files of strangers are safe to read: nothing in them is executed, and reading takes at most their size and 64 MiB.
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
MAX_HEADER_BYTES = 2**22  # bytes; a tensor takes some 120
MAX_CONTENT_CHARS = 2**20  # characters of the JSON in "content"
MAX_VALUES = 300_000  # in the header, counted by , : [ {; each may take some 80 bytes of memory
MAX_DEPTH = 16  # levels of nested lists and objects
MAX_TENSORS = 2**14
MAX_DIMS = 8
MAX_ELEMENTS = 2**48
HASH_CHUNK = 2**20  # bytes that are read and hashed at a time
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


class FormatError(Exception):
    """The file is not a valid checkpoint. The message continues a sentence that begins with the file's name."""


class TensorEntry(NamedTuple):
    """The header's description of a tensor; `begin` and `end` are byte offsets into the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def encode(content: Any, tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a checkpoint file with `content`, a JSON value, and tensors on any device.

    Raises:
        ValueError: a tensor's dtype is not in `DTYPES`, or the header is larger than the format allows.
    """
    entries, parts, end = [], [], 0
    sizes = {name: tensor.element_size() for name, tensor in tensors.items()}
    for name in sorted(tensors, key=lambda name: (-sizes[name], name)):  # each is aligned to its element size
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in CODES:
            raise ValueError(f"its tensor {name} is of type {dtype}; a checkpoint holds {', '.join(CODES)}")
        begin, end = end, end + tensor.numel() * sizes[name]
        entries.append(TensorEntry(name, CODES[dtype], tuple(tensor.shape), begin, end))
        parts.append(tensor_bytes(tensor))
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    digest = hashlib.sha256(digest_input(text, entries))
    for part in parts:
        digest.update(part)
    metadata = {"format": FORMAT, "content": text, "sha256": digest.hexdigest()}
    table = {e.name: {"dtype": e.dtype, "shape": e.shape, "data_offsets": [e.begin, e.end]} for e in entries}
    header = json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % LENGTH.size)
    try:
        if len(header) > MAX_HEADER_BYTES or len(text) > MAX_CONTENT_CHARS:
            raise FormatError(f"its header has {len(header)} bytes")
        parse_header(parse_json(header), end)
    except FormatError as error:
        raise ValueError(f"{error}: the network has more tensors than a checkpoint holds") from error
    return b"".join([LENGTH.pack(len(header)), header, *parts])


def digest_input(content: str, entries: list[TensorEntry]) -> bytes:
    """The bytes that the SHA-256 covers before the tensors' data."""
    return json.dumps([FORMAT, content, sorted(entries)], separators=(",", ":")).encode()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, not copied."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(bytearray())


def read_content(path: Path) -> Any:
    """Read the JSON content of a checkpoint after checking its digest; tensors are hashed in chunks and not kept.

    Raises:
        FormatError: the file is not an intact checkpoint of this format.
        OSError: the file cannot be read.
    """
    return read(path, with_tensors=False)[0]


def read(path: Path, with_tensors: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """Read the JSON content and the CPU tensors of a checkpoint, and check its digest. Raises as `read_content`."""
    with open_regular(path) as file:
        metadata, entries = read_header(file)
        if metadata.get("format") != FORMAT:
            raise FormatError(f"is no checkpoint of this version of metarun ({FORMAT})")
        if metadata.keys() != {"format", "content", "sha256"} or len(metadata["content"]) > MAX_CONTENT_CHARS:
            raise FormatError("is damaged: its header holds something else than a checkpoint's")
        text = metadata["content"]
        digest = hashlib.sha256(digest_input(text, entries))
        tensors: dict[str, Tensor] = {}
        if with_tensors:
            for name, tensor, memory in read_tensors(file, entries):
                digest.update(memory)
                tensors[name] = tensor
        else:
            memory = memoryview(bytearray(HASH_CHUNK))
            for first in range(0, entries[-1].end if entries else 0, HASH_CHUNK):
                piece = memory[: min(HASH_CHUNK, entries[-1].end - first)]
                read_exactly(file, piece)
                digest.update(piece)
    if digest.hexdigest() != metadata["sha256"]:
        raise FormatError("is damaged: its bytes are not those that its SHA-256 is of")
    return parse_json(text.encode("utf-8", "surrogatepass")), tensors


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a metarun checkpoint of any version, by its metadata. Raises as `read_content`."""
    if path.suffix != ".safetensors":
        return False
    with open_regular(path) as file:
        return read_header(file)[0].get("format", "").startswith(FORMAT.rstrip("0123456789"))


def foreign_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of any safetensors file, checkpoint or not. Raises as `read_content`."""
    with open_regular(path) as file:
        return {name: tensor for name, tensor, _ in read_tensors(file, read_header(file)[1])}


def read_header(file: BinaryIO) -> tuple[dict[str, str], list[TensorEntry]]:
    """Read metadata and tensor entries, in the order of their data; leaves the file at the first tensor's data."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(LENGTH.size)
    if start.startswith(b"PK"):
        raise FormatError(
            "is a file of torch.save, as earlier versions of metarun wrote them; this version reads checkpoints that "
            "end in .safetensors: go on with the version that wrote it, or train again"
        )
    if len(start) < LENGTH.size:
        raise FormatError(f"is cut short or none: it has {size} bytes")
    (length,) = LENGTH.unpack(start)
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"is damaged or none: its header would have {length} bytes, {MAX_HEADER_BYTES} are the most")
    if LENGTH.size + length > size:
        raise FormatError(f"is cut short or none: it has {size} bytes, its header ends at {LENGTH.size + length}")
    return parse_header(parse_json(file.read(length)), size - LENGTH.size - length)


def parse_header(header: Any, size: int) -> tuple[dict[str, str], list[TensorEntry]]:
    """Metadata and entries of a safetensors header whose data has `size` bytes. Raises FormatError if it is invalid."""
    if not isinstance(header, dict):
        raise FormatError("is damaged: its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("is damaged: the metadata in its header is not text")
    if len(header) > MAX_TENSORS:
        raise FormatError(f"has {len(header)} tensors, {MAX_TENSORS} are the most")
    entries = sorted(
        (parse_entry(name, value) for name, value in header.items()), key=lambda e: (e.begin, e.end, e.name)
    )
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise FormatError(f"is damaged: its tensor {entry.name!r} does not begin where the one before it ends")
        end = entry.end
    if end != size:
        raise FormatError(f"is cut short or damaged: its tensors have {end} bytes, the file has {size} for them")
    return metadata, entries


def parse_entry(name: str, value: Any) -> TensorEntry:
    """The entry of tensor `name`. Raises FormatError if dtype, shape and offsets are invalid or inconsistent."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"is damaged: its header does not describe tensor {name!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"is damaged, or of another kind: tensor {name!r} is of type {str(dtype)[:20]!r}, "
                      f"known are {', '.join(DTYPES)}")  # fmt: skip
    for numbers, most in ((shape, MAX_DIMS), (offsets, 2)):
        if not isinstance(numbers, list) or len(numbers) > most or not all(type(n) is int and n >= 0 for n in numbers):
            raise FormatError(f"is damaged: shape or offsets of tensor {name!r} are no sizes")
    if math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS or len(offsets) != 2:
        raise FormatError(f"is damaged: shape or offsets of tensor {name!r} are no sizes")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype][1]:
        raise FormatError(f"is damaged: tensor {name!r} of shape {shape} does not take {end - begin} bytes")
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def read_tensors(file: BinaryIO, entries: list[TensorEntry]) -> Iterator[tuple[str, Tensor, memoryview]]:
    """Yield name, tensor and the tensor's memory, in the order of the file. Raises FormatError if one is cut short."""
    import torch

    for entry in entries:
        try:
            tensor = torch.empty(entry.shape, dtype=getattr(torch, DTYPES[entry.dtype][0]))
        except (RuntimeError, MemoryError) as error:
            raise FormatError(
                f"needs more memory than there is: {entry.end - entry.begin} bytes for a tensor"
            ) from error
        memory = tensor_bytes(tensor)
        read_exactly(file, memory)
        yield entry.name, tensor, memory


def read_exactly(file: BinaryIO, memory: memoryview) -> None:
    """Fill `memory` from the file. Raises FormatError if the file is too short."""
    if file.readinto(memory) != len(memory):  # type: ignore[attr-defined]
        raise FormatError("is cut short: it became shorter while it was read")


# --- JSON ----------------------------------------------------------------------------------------------------


def parse_json(text: bytes) -> Any:
    """Parse ASCII JSON of bounded size and depth, with finite 64-bit numbers and no duplicate keys.

    Raises:
        FormatError: `text` is anything else.
    """
    if not text.isascii():
        raise FormatError("is damaged: its header is not ASCII")
    if sum(text.count(sign) for sign in (b",", b":", b"[", b"{")) > MAX_VALUES:
        raise FormatError(f"holds more than {MAX_VALUES} values in its header")
    check_depth(text)
    numbers = {"parse_int": parse_int64, "parse_float": parse_finite, "parse_constant": reject_constant}
    try:
        return json.loads(text, **numbers, object_pairs_hook=reject_duplicate_keys)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is damaged: its header is no JSON ({str(error)[:80]})") from error


def check_depth(text: bytes) -> None:
    """Raise FormatError if lists and objects are nested deeper than `MAX_DEPTH`."""
    level, within = 0, False
    for match in re.finditer(rb'\\.|["\[\]{}]', text, re.DOTALL):
        sign = match[0]
        if sign == b'"':
            within = not within
        elif not within:
            level += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(sign, 0)
            if level > MAX_DEPTH:
                raise FormatError(f"is damaged: its header is nested deeper than {MAX_DEPTH} levels")


def parse_int64(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise FormatError("is damaged: its header holds a whole number of more than 64 bits")
    return int(text)


def parse_finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise FormatError("is damaged: its header holds a number that is not finite")
    return value


def reject_constant(text: str) -> Any:
    raise FormatError(f"is damaged: its header holds {text}, which is no JSON")


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise FormatError("is damaged: its header says something twice")
    return found
