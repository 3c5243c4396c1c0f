"""Reads the plain content of a checkpoint that anyone may have made: no code, and no more memory than the file has.

The file is what torch.save writes: a zip of `data.pkl` and the bytes of each tensor. torch.load(weights_only=True)
runs no code from it either, but it unpacks compressed parts of any size, and makes a bytearray of any length.
"""

from __future__ import annotations

import math
import os
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

MOST_DIRECTORY = 2**22  # bytes of the zip's directory: some 40,000 tensors
MOST_PICKLE = 2**24  # bytes
MOST_STEPS = 500_000  # opcodes of the pickle, and values that it comes to; a tensor takes some 25
MOST_DEPTH = 20  # of nesting, and of a tensor's shape
DIRECTORY = struct.Struct("<4s36xQ8x")  # of zip64, before its 20-byte locator: signature and the directory's size
LOCATOR, END = 20, 22  # bytes of what follows it

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
}


class Refused(Exception):
    """The file is no plain checkpoint; the message says what it holds instead."""


class Name(NamedTuple):
    """A name of Python's that stands in a pickle; it is never resolved."""

    text: str


class Storage(NamedTuple):
    """What a pickle says of one part: that it holds so many elements."""

    key: str
    dtype: torch.dtype
    elements: int


def parts(file: BinaryIO) -> zipfile.ZipFile:
    """The zip in a file, whose parts lie there as they are, each byte in one of them.

    Raises:
        Refused: the parts are compressed, or more than the file has room for.
        zipfile.BadZipFile: the file is cut short, damaged or no zip.
    """
    size = file.seek(0, os.SEEK_END)
    if size < DIRECTORY.size + LOCATOR + END:
        raise zipfile.BadZipFile("File is not a zip file")
    file.seek(-(DIRECTORY.size + LOCATOR + END), os.SEEK_END)
    signature, directory = DIRECTORY.unpack(file.read(DIRECTORY.size))
    if signature != b"PK\x06\x06":
        raise zipfile.BadZipFile("File is not a zip file that torch.save wrote")
    if directory > MOST_DIRECTORY:
        raise Refused(f"its list of parts has {directory} bytes, {MOST_DIRECTORY} are the most")
    found = zipfile.ZipFile(file)
    entries = found.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries):
        raise Refused("its parts are compressed")
    if sum(entry.file_size for entry in entries) > size:
        raise Refused(f"its parts add up to more than its {size} bytes")
    return found


def check(path: Path) -> None:
    """Read every byte against its checksum, a piece at a time, and the content without its tensors' elements.

    Raises:
        Exception: as `read` would.
    """
    with path.open("rb") as file, parts(file) as archive:
        content(archive, elements=False)


def read(path: Path) -> Any:
    """What the file holds: dicts, lists, tuples, numbers, strings, None and contiguous tensors on the CPU.

    Raises:
        Refused: it holds anything else, or would take more memory than a file of its size has to.
        Exception: damaged bytes make it anything.
    """
    with path.open("rb") as file, parts(file) as archive:
        return content(archive, elements=True)


def content(archive: zipfile.ZipFile, elements: bool) -> Any:
    """The same, behind a look at every checksum; without `elements`, tensors are empty."""
    if (damaged := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f"its part {damaged} is damaged")
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise Refused("it has no data.pkl, or several")
    (name,) = names
    if archive.getinfo(name).file_size > MOST_PICKLE:
        raise Refused(f"its {name} has more than {MOST_PICKLE} bytes")
    top = name.removesuffix("data.pkl")
    if f"{top}byteorder" in archive.namelist():  # torch before 2.1 did not say
        order = archive.getinfo(f"{top}byteorder")
        if order.file_size > len("little") or archive.read(order) != sys.byteorder.encode():
            raise Refused("its numbers are in the byte order of another kind of machine")
    found = Machine(archive, top, elements).run(archive.read(name))
    require_plain(found)
    return found


class Machine:
    """The part of pickle that torch.save writes for plain content; a pickle is a program for a stack of values."""

    def __init__(self, archive: zipfile.ZipFile, top: str, elements: bool) -> None:
        self.archive = archive
        self.top = top
        self.elements = elements  # whether tensors are read, or left empty
        self.used: set[str] = set()  # parts that a tensor has taken
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if count == MOST_STEPS:
                raise Refused(f"its data.pkl has more than {MOST_STEPS} steps")
            if opcode.name in PUSHED:
                self.push(argument)
            elif opcode.name in STEPS:
                STEPS[opcode.name](self, argument)
            else:
                raise Refused(f"its data.pkl holds {opcode.name}, which plain content does not need")
        (content,) = self.stack
        return content

    def push(self, value: Any) -> None:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise Refused("it holds a whole number of more than 64 bits")
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        return self.last(len(self.stack) - self.marks.pop())

    def last(self, count: int) -> list[Any]:
        """Take values from the stack."""
        if not 0 <= count <= len(self.stack):
            raise Refused("its data.pkl takes more than it has put")
        start = len(self.stack) - count
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def tuple_of(self, values: list[Any]) -> None:
        self.stack.append(tuple(values))

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise Refused("its data.pkl appends to what is no list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        names = values[::2]
        if not isinstance(self.stack[-1], dict) or not all(type(name) in (str, int) for name in names):
            raise Refused("it holds a dict with other names than words and numbers")
        self.stack[-1].update(zip(names, values[1::2], strict=True))

    def look_up(self, name: str) -> None:
        """A name of Python's: the kinds that torch.save writes, each stood for by a value that does nothing."""
        module, _, last = name.partition(" ")
        known = (module == "torch" and last in DTYPES) or name in (TENSOR, PARAMETER, HOOKS)
        if not known:
            raise Refused(f"it asks for {module}.{last}, which is no plain content")
        self.stack.append(Name(name))

    def call(self) -> None:
        function, arguments = self.last(2)
        if function == Name(TENSOR) and isinstance(arguments, tuple) and len(arguments) >= 4:
            self.stack.append(self.tensor(*arguments[:4]))
        elif function == Name(PARAMETER) and isinstance(arguments, tuple) and len(arguments) == 3:
            self.stack.append(arguments[0])
        elif function == Name(HOOKS) and arguments == ():
            self.stack.append({})
        else:
            raise Refused("its data.pkl calls what is no function of plain content")

    def build(self) -> None:
        """What a module's state_dict is said to be beside its items, as which version wrote it: left out."""
        (beside,) = self.last(1)
        if not isinstance(self.stack[-1], dict) or not isinstance(beside, dict) or beside.keys() != {"_metadata"}:
            raise Refused("its data.pkl builds what plain content does not need")

    def storage(self) -> None:
        """Put a part's description. Raises Refused where the part is not as long as it is said to be."""
        ((word, kind, key, _, count),) = self.last(1)
        if word != "storage" or not isinstance(kind, Name) or not isinstance(key, str) or type(count) is not int:
            raise Refused("a tensor's place is damaged")
        found = Storage(key, DTYPES[kind.text.removeprefix("torch ")], count)
        size = self.archive.getinfo(f"{self.top}data/{key}").file_size
        if size != count * found.dtype.itemsize:
            raise Refused(f"a tensor of {count} elements has {size} bytes")
        self.stack.append(found)

    def tensor(self, storage: object, offset: Any, size: object, stride: object) -> Tensor:
        """A contiguous tensor. Raises Refused where it has more elements than its part, or shares it."""
        if not isinstance(storage, Storage) or storage.key in self.used:
            raise Refused("two tensors share their bytes, or one has none")
        if not isinstance(size, tuple) or not isinstance(stride, tuple) or not len(size) == len(stride) <= MOST_DEPTH:
            raise Refused("a tensor's shape is damaged")
        if any(type(value) is not int or value < 0 for value in (offset, *size, *stride)):
            raise Refused("a tensor's shape is damaged")
        self.used.add(storage.key)
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count > storage.elements or (count and last >= storage.elements):
            raise Refused(f"a tensor of shape {list(size)} has {storage.elements} elements")
        if not count:
            return torch.empty(size, dtype=storage.dtype)
        if not self.elements:
            return torch.empty(0, dtype=storage.dtype)
        data = bytearray(self.archive.read(f"{self.top}data/{storage.key}"))
        return torch.frombuffer(data, dtype=storage.dtype).as_strided(size, stride, offset).contiguous()


TENSOR, HOOKS = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
PARAMETER = "torch._utils _rebuild_parameter"
PUSHED = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")  # their argument is their value
STEPS: dict[str, Callable[[Machine, Any], object]] = {
    "PROTO": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.tuple_of(machine.since_mark()),
    "TUPLE1": lambda machine, _: machine.tuple_of(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.tuple_of(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.tuple_of(machine.last(3)),
    "APPEND": lambda machine, _: machine.append(machine.last(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "BINPUT": lambda machine, number: machine.memo.update({number: machine.stack[-1]}),
    "LONG_BINPUT": lambda machine, number: machine.memo.update({number: machine.stack[-1]}),
    "BINGET": lambda machine, number: machine.push(machine.memo[number]),
    "LONG_BINGET": lambda machine, number: machine.push(machine.memo[number]),
    "GLOBAL": lambda machine, name: machine.look_up(name),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.storage(),
}


def require_plain(content: Any) -> None:
    """Raises Refused for content that is no plain data, nested too deeply, or in itself."""
    waiting, seen = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > MOST_DEPTH or seen + len(waiting) > MOST_STEPS:
            raise Refused(f"it is nested more than {MOST_DEPTH} deep, or holds more than {MOST_STEPS} values")
        if type(value) in (dict, list, tuple):
            waiting += [(entry, depth + 1) for entry in (value.values() if isinstance(value, dict) else value)]
        elif type(value) not in (int, float, str, bool, type(None), Tensor):
            raise Refused("it holds something that is no plain data")
