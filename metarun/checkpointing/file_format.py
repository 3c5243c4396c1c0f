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
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from metarun.utils import safe_files
from metarun.utils.safe_files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "metarun checkpoint 3"
LENGTH = struct.Struct("<Q")
MAX_HEADER_BYTES = 2**22  # a tensor takes some 120
MAX_VALUES = 300_000  # in the header, counted by , : [ {; each may take some 80 bytes of memory
MAX_TENSORS = 2**14
MAX_DIMS = 8
MAX_ELEMENTS = 2**48
HASH_CHUNK = 2**20  # bytes
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
    """The file cannot be read or is not valid. The message continues a sentence that begins with the file's name."""


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
        FormatError: a tensor's dtype is not in `DTYPES`, or the header is larger than what is read.
    """
    entries, parts, end = [], [], 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # aligned to element size
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in CODES:
            raise FormatError(f"its tensor {name} is of type {dtype}; a checkpoint holds {', '.join(CODES)}")
        begin, end = end, end + tensor.nbytes
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
    if len(header) > MAX_HEADER_BYTES:
        raise FormatError(f"has a header of {len(header)} bytes, at most {MAX_HEADER_BYTES} are read")
    parse_header(parse_json(header), end)
    return b"".join([LENGTH.pack(len(header)), header, *parts])


def digest_input(content: str, entries: list[TensorEntry]) -> bytes:
    """The bytes that the SHA-256 covers before the tensors' data."""
    return json.dumps([FORMAT, content, sorted(entries)], separators=(",", ":")).encode()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, not copied."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(bytearray())


def read(path: Path, with_tensors: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """Read the JSON content and the CPU tensors of a checkpoint, and check its digest.

    Without tensors, their data is hashed in chunks and not kept, and torch is not imported.

    Raises:
        FormatError: the file cannot be read, or is not an intact checkpoint of this format.
    """
    with open_file(path) as file:
        metadata, entries = read_header(file)
        if metadata.get("format") != FORMAT:
            raise FormatError(f"is no checkpoint of this version of metarun ({FORMAT})")
        if metadata.keys() != {"format", "content", "sha256"}:
            raise FormatError("is damaged: its header holds something else than a checkpoint's")
        digest = hashlib.sha256(digest_input(metadata["content"], entries))
        tensors = read_tensors(file, entries) if with_tensors else {}
        for tensor in tensors.values():
            digest.update(tensor_bytes(tensor))
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != metadata["sha256"]:
        raise FormatError("is damaged: its SHA-256 differs from the one in its header")
    return parse_json(metadata["content"].encode("utf-8", "surrogatepass")), tensors


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a metarun checkpoint of any version, by its metadata. Raises FormatError."""
    if path.suffix != ".safetensors":
        return False
    with open_file(path) as file:
        return read_header(file)[0].get("format", "").startswith(FORMAT.rstrip("0123456789"))


def foreign_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of any safetensors file, checkpoint or not. Raises FormatError."""
    with open_file(path) as file:
        return read_tensors(file, read_header(file)[1])


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read. Raises FormatError if it cannot be opened, or if reading it fails."""
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise FormatError(f"cannot be read ({error.strerror or error})") from error


def read_header(file: BinaryIO) -> tuple[dict[str, str], list[TensorEntry]]:
    """Read metadata and tensor entries, in the order of their data; leaves the file at the first tensor's data."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(LENGTH.size)
    if start.startswith(b"PK"):
        raise FormatError(
            "is a file of torch.save, as earlier versions of metarun wrote them; this version reads checkpoints that "
            "end in .safetensors: go on with the version that wrote it, or train again"
        )
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH.size or LENGTH.size + length > size:
        raise FormatError(f"is cut short or not a checkpoint: it has {size} bytes, fewer than its header needs")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"is damaged: its header has {length} bytes, at most {MAX_HEADER_BYTES} are read")
    return parse_header(parse_json(file.read(length)), size - LENGTH.size - length)


def parse_header(header: Any, size: int) -> tuple[dict[str, str], list[TensorEntry]]:
    """Metadata and entries of a safetensors header whose data has `size` bytes. Raises FormatError if it is invalid."""
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("is damaged: its header is not an object whose metadata is text")
    if len(header) > MAX_TENSORS:
        raise FormatError(f"has {len(header)} tensors, at most {MAX_TENSORS} are read")
    entries = sorted((parse_entry(*item) for item in header.items()), key=lambda e: (e.begin, e.end, e.name))
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise FormatError(f"is damaged: its tensor {entry.name[:60]!a} does not begin where the one before it ends")
        end = entry.end
    if end != size:
        raise FormatError(f"is cut short or damaged: its tensors have {end} bytes, the file has {size} for them")
    return metadata, entries


def parse_entry(name: str, value: Any) -> TensorEntry:
    """The entry of tensor `name`. Raises FormatError if dtype, shape and offsets are invalid or inconsistent."""
    invalid = FormatError(f"is damaged: its header gives tensor {name[:60]!a} no valid type, shape and offsets")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise invalid
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if isinstance(dtype, str) and dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise FormatError(f"cannot be read: its tensor {name[:60]!a} is of type {dtype[:20]!a}, known are {known}")
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise invalid
    if (
        not all(type(size) is int and size >= 0 for size in (*shape, *offsets))
        or (len(offsets) != 2 or len(shape) > MAX_DIMS or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS)
        or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype][1]
    ):
        raise invalid
    return TensorEntry(name, dtype, tuple(shape), *offsets)


def read_tensors(file: BinaryIO, entries: list[TensorEntry]) -> dict[str, Tensor]:
    """Read the tensors in the order of the file. Raises FormatError if one is cut short."""
    import torch

    tensors: dict[str, Tensor] = {}
    for name, dtype, shape, begin, end in entries:
        try:
            tensors[name] = torch.empty(shape, dtype=getattr(torch, DTYPES[dtype][0]))
        except (RuntimeError, MemoryError) as error:
            raise FormatError(f"needs more memory than there is: {end - begin} bytes for a tensor") from error
        if file.readinto(tensor_bytes(tensors[name])) != end - begin:  # type: ignore[attr-defined]
            raise FormatError("is cut short: it became shorter while it was read")
    return tensors


def parse_json(text: bytes) -> Any:
    """Parse ASCII JSON of bounded size and depth, with finite numbers. Raises FormatError if it is anything else."""
    if not text.isascii() or sum(map(text.count, (b",", b":", b"[", b"{"))) > MAX_VALUES:
        raise FormatError(f"is damaged: its header is not ASCII, or holds more than {MAX_VALUES} values")
    try:
        return safe_files.parse_json(text)
    except ValueError as error:
        raise FormatError(f"is damaged: its header is no JSON ({str(error)[:80]})") from error
