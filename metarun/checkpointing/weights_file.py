"""Files of weights that other programs wrote: safetensors, and what torch.save writes, as tensors by their names."""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from metarun.checkpointing import file_format
from metarun.checkpointing.file_format import FormatError

CONTAINERS = ("state_dict", "model_state_dict", "model", "network", "net", "module", "weights")  # of a state_dict
WRAPPERS = ("module.", "model.", "_orig_mod.")  # in front of every name: DataParallel, Lightning, torch.compile
WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # anywhere in a name
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save wrote first, before 1.6
MOST_DIRECTORY = 2**22  # bytes of a zip's directory: some 40,000 tensors
MOST_PICKLE = 2**24  # bytes
DIRECTORY = struct.Struct("<4s36xQQ")  # of zip64: signature, the directory's size and place
LOCATOR, END = 20, 22  # bytes of what follows it
STORAGES = {  # what torch.save names a tensor's memory by, and the bytes of an element
    f"torch {name}Storage": size
    for size, names in {8: "Double Long", 4: "Float Int", 2: "Half BFloat16 Short", 1: "Byte Char Bool"}.items()
    for name in names.split()
}
GLOBALS = {  # of Python's names, those that torch.save needs for tensors
    *STORAGES,
    *(f"torch._utils {name}" for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(f"torch {name}" for name in ("Size", "device", "float32", "float64", "float16", "bfloat16", "int64", "int32")),
    "collections OrderedDict",
}
INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")
OPCODES = {  # of pickle's, those that write plain content
    *INTEGERS,
    *("PROTO", "STOP", "MARK", "BINUNICODE", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "BINFLOAT"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("SETITEM", "SETITEMS", "APPEND", "APPENDS"),
}


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, onto the CPU.

    Raises:
        FormatError: it cannot be read, is damaged, of another kind, or holds more than plain weights.
    """
    if path.suffix == ".safetensors":
        return file_format.foreign_tensors(path)
    with file_format.open_file(path) as file:
        require_stored(file)
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make zips and pickles say anything
            said = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2] or type(error).__name__
            raise FormatError(f"cannot be read as weights alone: {said[:200]!a}") from error
    return state_dict(content)


def require_stored(file: BinaryIO) -> None:
    """Raise FormatError if a file is not a zip of torch.save with uncompressed parts that do not overlap."""
    start = file.read(len(LEGACY))
    size = file.seek(0, 2)
    if start == LEGACY:
        raise FormatError("is in torch's old form, bring it into the new: torch.save(torch.load(FILE), FILE)")
    if not start.startswith(b"PK") or size < DIRECTORY.size + LOCATOR + END:
        raise FormatError(
            "cannot be read: cut short, or no file of torch.save; give .safetensors, or what torch.save writes"
        )
    place = file.seek(-(DIRECTORY.size + LOCATOR + END), 2)
    signature, length, begin = DIRECTORY.unpack(file.read(DIRECTORY.size))
    if signature != b"PK\x06\x06" or begin + length != place or length > MOST_DIRECTORY:
        raise FormatError("cannot be read: cut short, damaged, or no file of torch.save")
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries
        ):
            raise FormatError("cannot be read: its parts are compressed; torch.save stores them as they are")
        if sum(entry.file_size for entry in entries) > size:
            raise FormatError(f"cannot be read: its parts add up to more than its {size} bytes")
        require_plain(archive)
    except (zipfile.BadZipFile, ValueError, LookupError, UnicodeDecodeError, struct.error) as error:
        raise FormatError(f"cannot be read: cut short or damaged ({str(error)[:80]!a})") from error


def require_plain(archive: zipfile.ZipFile) -> None:
    """Look through a file's pickle for what torch.load would take memory for, or read beyond a part.

    Raises:
        FormatError: it asks for anything but tensors in plain containers, or for a tensor that is larger than its part.
    """
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    if archive.getinfo(name).file_size > MOST_PICKLE:
        raise FormatError(f"cannot be read: its {name} has more than {MOST_PICKLE} bytes")
    memo: dict[Any, Any] = {}
    pushed: list[tuple[str, Any]] = []  # the last operations, without those that only note what was pushed
    for opcode, argument, _ in pickletools.genops(archive.read(name)):
        kind = opcode.name
        if kind not in OPCODES or (kind == "GLOBAL" and argument not in GLOBALS):
            what = argument if kind == "GLOBAL" else kind
            raise FormatError(f"its data.pkl asks for {what!a}, which weights do not need; give a state_dict alone")
        if kind.endswith("PUT"):
            memo[argument] = pushed[-1] if pushed and pushed[-1][0] in ("GLOBAL", "BINUNICODE") else ("", None)
        elif kind == "BINPERSID":
            require_within_part(archive, name.removesuffix(".pkl"), pushed)
            pushed.append((kind, None))
        else:
            pushed.append(memo.get(argument, ("", None)) if kind.endswith("GET") else (kind, argument))
        del pushed[:-7]


def require_within_part(archive: zipfile.ZipFile, data: str, pushed: list[tuple[str, Any]]) -> None:
    """Raises FormatError where a tensor's memory, named by the last operations, is larger than the part it lies in."""
    kinds, values = [kind for kind, _ in pushed], [value for _, value in pushed]
    texts = ["BINUNICODE", "GLOBAL", "BINUNICODE", "BINUNICODE"]
    named = len(kinds) == 7 and kinds[:5] == ["MARK", *texts] and kinds[5] in INTEGERS and kinds[6:] == ["TUPLE"]
    if not named or values[1] != "storage" or values[2] not in STORAGES:
        raise FormatError("its data.pkl names the memory of a tensor otherwise than torch.save does")
    claimed, found = values[5] * STORAGES[values[2]], archive.getinfo(f"{data}/{values[3]}").file_size
    if not 0 <= claimed <= found:
        raise FormatError(f"its data.pkl claims {claimed} bytes for a tensor, its part has {found}")


def state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors by their names, which may lie in a container such as Lightning's `state_dict`."""
    for _ in CONTAINERS:
        if not isinstance(content, dict) or any(isinstance(value, Tensor) for value in content.values()):
            break
        inside = [content[name] for name in CONTAINERS if isinstance(content.get(name), dict)]
        if not inside:
            break
        content = inside[0]
    if isinstance(content, dict) and {"format", "theta"} <= content.keys():
        raise FormatError(
            "is a checkpoint of an earlier version of metarun, which this one does not read: "
            "give a run of this version, or the weights alone, by their names"
        )
    if not isinstance(content, dict):
        raise FormatError("holds no weights by their names; give a state_dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise FormatError(
                f"holds {ascii(name)[:60]}, which is no tensor of weights; give a file of weights by their names"
            )
    return content


def unwrapped(tensors: dict[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors by the names that a network of the `wanted` names has, and what was taken off in front of theirs.

    Raises:
        FormatError: the network is in the file several times.
    """
    for segment in WITHIN:
        tensors = {name.replace(segment, ""): tensor for name, tensor in tensors.items()}
    probe = next(iter(wanted))
    ends = [name.removesuffix(probe) for name in tensors if name == probe or name.endswith(f".{probe}")]
    prefixes = [prefix for prefix in ends if all(f"{prefix}{name}" in tensors for name in wanted)]
    if "" in prefixes:
        return tensors, ""
    if len(prefixes) > 1:
        raise FormatError(
            f"holds the network several times, below {', '.join(map(ascii, prefixes))}; give one of them alone"
        )
    prefix = prefixes[0] if prefixes else ""
    while not prefixes and (longer := common(tensors, prefix)):
        prefix = longer
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}, prefix


def common(names: Collection[str], prefix: str) -> str | None:
    """A prefix that all names have, one of `WRAPPERS` longer than this one."""
    longer = [prefix + one for one in WRAPPERS if all(name.startswith(prefix + one) for name in names)]
    return longer[0] if names and longer else None
