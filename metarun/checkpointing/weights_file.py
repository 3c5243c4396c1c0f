"""Reads files of weights of other programs: safetensors, and what torch.save writes."""

import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from metarun.checkpointing import file_format
from metarun.checkpointing.file_format import FormatError

CONTAINERS = ("state_dict", "model_state_dict", "model", "network", "net", "module", "weights")  # keys of a state_dict
WRAPPERS = re.compile(r"((module|model|_orig_mod)\.)*")  # before every name: DataParallel, Lightning, torch.compile
INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # anywhere in a name
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # begins what torch.save wrote before 1.6
MAX_DIRECTORY_BYTES = 2**22  # of a zip: some 40,000 tensors
MAX_PICKLE_BYTES = 2**24
DIRECTORY = struct.Struct("<4s36xQQ")  # of zip64: signature, size and offset of the directory
DIRECTORY_END = DIRECTORY.size + 20 + 22  # bytes from there to the end of the file, with the locator and the old record
STORAGES = {  # torch.save's name of a storage -> bytes of an element
    f"torch {name}Storage": size
    for size, names in {8: "Double Long", 4: "Float Int", 2: "Half BFloat16 Short", 1: "Byte Char Bool"}.items()
    for name in names.split()
}
GLOBALS = {  # the Python names that torch.save needs for tensors
    *STORAGES,
    *(f"torch._utils {name}" for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(f"torch {name}" for name in ("Size", "device", "float32", "float64", "float16", "bfloat16", "int64", "int32")),
    "collections OrderedDict",
}
INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, onto the CPU.

    Raises:
        FormatError: the file cannot be read, is damaged, of another type, or holds more than plain weights.
    """
    if path.suffix == ".safetensors":
        return file_format.foreign_tensors(path)
    with file_format.open_file(path) as file:
        require_stored(file)
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # zipfile and pickle raise many types for damaged bytes
            reason = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2] or type(error).__name__
            raise FormatError(f"cannot be read as weights alone: {reason[:200]!a}") from error
    return find_state_dict(content)


def require_stored(file: BinaryIO) -> None:
    """Raise FormatError if a file is not a zip of torch.save with uncompressed parts that do not overlap."""
    start = file.read(len(LEGACY))
    size = file.seek(0, 2)
    if start == LEGACY:
        raise FormatError("is in torch's old format; convert it by torch.save(torch.load(FILE), FILE)")
    directory_offset = size - DIRECTORY_END
    if not start.startswith(b"PK") or directory_offset < 0:
        raise FormatError("cannot be read: cut short, or not a .safetensors file or one of torch.save")
    file.seek(directory_offset)
    signature, length, begin = DIRECTORY.unpack(file.read(DIRECTORY.size))
    if signature != b"PK\x06\x06" or begin + length != directory_offset or length > MAX_DIRECTORY_BYTES:
        raise FormatError("cannot be read: cut short, damaged, or not a file of torch.save")
    try:
        archive = zipfile.ZipFile(file)
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size for part in parts):
            raise FormatError("cannot be read: its parts are compressed, which torch.save does not do")
        if sum(part.file_size for part in parts) > size:
            raise FormatError(f"cannot be read: its parts add up to more than its {size} bytes")
        require_plain(archive)
    except (zipfile.BadZipFile, ValueError, LookupError, struct.error) as error:
        raise FormatError(f"cannot be read: cut short or damaged ({str(error)[:80]!a})") from error


def require_plain(archive: zipfile.ZipFile) -> None:
    """Check a file's pickle for what would make torch.load take much memory, or read beyond a part of the zip.

    Raises:
        FormatError: it has anything but tensors in plain containers, or a tensor that is larger than its part.
    """
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
        raise FormatError(f"cannot be read: its {name} has more than {MAX_PICKLE_BYTES} bytes")
    memo: dict[Any, Any] = {}
    pushed: list[tuple[str, Any]] = []  # opcode and argument of the last values on the stack
    for opcode, argument, _ in pickletools.genops(archive.read(name)):
        code = opcode.name
        if code == "GLOBAL" and argument not in GLOBALS:
            raise FormatError(f"its data.pkl asks for {argument!a}, which weights do not need; give a state_dict alone")
        if code.endswith("PUT"):
            memo[argument] = pushed[-1] if pushed and pushed[-1][0] in ("GLOBAL", "BINUNICODE") else ("", None)
        elif code == "BINPERSID":
            require_within_part(archive, name.removesuffix(".pkl"), pushed)
            pushed.append((code, None))
        else:
            pushed.append(memo.get(argument, ("", None)) if code.endswith("GET") else (code, argument))
        del pushed[:-7]


def require_within_part(archive: zipfile.ZipFile, folder: str, pushed: list[tuple[str, Any]]) -> None:
    """Raise FormatError if a storage, `("storage", type, key, location, size)`, is larger than its part of the zip."""
    codes, values = [code for code, _ in pushed], [value for _, value in pushed]
    expected = ["MARK", "BINUNICODE", "GLOBAL", "BINUNICODE", "BINUNICODE"]
    is_storage = len(codes) == 7 and codes[:5] == expected and codes[5] in INTEGERS and codes[6] == "TUPLE"
    if not is_storage or values[1] != "storage" or values[2] not in STORAGES:
        raise FormatError("its data.pkl describes a tensor's memory in another way than torch.save does")
    claimed, present = values[5] * STORAGES[values[2]], archive.getinfo(f"{folder}/{values[3]}").file_size
    if not 0 <= claimed <= present:
        raise FormatError(f"its data.pkl claims {claimed} bytes for a tensor, its part has {present}")


def find_state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors by name, which may be inside containers such as Lightning's `state_dict`."""
    for _ in CONTAINERS:
        if not isinstance(content, dict) or any(isinstance(value, Tensor) for value in content.values()):
            break
        content = next((content[name] for name in CONTAINERS if isinstance(content.get(name), dict)), content)
    if not isinstance(content, dict):
        raise FormatError("holds no weights by their names; give a state_dict")
    if {"format", "theta"} <= content.keys():
        raise FormatError(
            "is a checkpoint of an earlier version of metarun; give a run of this version, or a state_dict"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise FormatError(f"holds {ascii(name)[:60]}, which is not a tensor of weights; give a state_dict alone")
    return content


def unwrap_names(tensors: dict[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors under the names that the network has, and the prefix that was removed from their names.

    Args:
        wanted: names of the network's tensors.

    Raises:
        FormatError: the file holds the network several times.
    """
    for segment in INNER_WRAPPERS:
        tensors = {name.replace(segment, ""): tensor for name, tensor in tensors.items()}
    probe = next(iter(wanted))
    ends = [name.removesuffix(probe) for name in tensors if name == probe or name.endswith(f".{probe}")]
    prefixes = [prefix for prefix in ends if all(f"{prefix}{name}" in tensors for name in wanted)]
    if "" in prefixes:
        return tensors, ""
    if len(prefixes) > 1:
        raise FormatError(f"holds the network several times, below {', '.join(map(ascii, prefixes))}; give only one")
    common = WRAPPERS.match(os.path.commonprefix(list(tensors)))  # noqa: RUF071  # by characters
    prefix = prefixes[0] if prefixes else common[0] if common else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}, prefix
