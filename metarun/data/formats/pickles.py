"""A restricted unpickler: numpy arrays and Python's own containers, and nothing that could run.

A pickle is a program for a stack of values. Only operations that make plain values and containers are carried out, and
the only globals are those of arrays, each replaced by a function that checks its arguments.
"""

import math
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from metarun.data.formats.reading import open_data_file, read_errors

WHAT = "a pickle of arrays"
MAX_READS = 2**21  # of an operation or its argument, none of which makes over 100 bytes; data files have up to 10**6
OPCODE_NAMES = (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT"),
    *("BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET"),
    *("LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BYTEARRAY8"),
)
OPCODES = [getattr(pickle, name)[0] for name in OPCODE_NAMES]


PythonUnpickler: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


class Refused(pickle.UnpicklingError):
    """The pickle holds something that no data file needs."""


class AllowedGlobal:
    """Stands for a global that a data file may name. `call` replaces it; None: it cannot be called."""

    def __init__(self, call: Callable[..., Any] | None) -> None:
        self.call = call


class Dtype:
    """A dtype of numbers, text or objects. Its byte order comes after its name."""

    def __init__(self, name: Any, *_: Any) -> None:
        match = re.fullmatch(r"([biufSUO])(\d{1,9})", name.decode() if isinstance(name, bytes) else str(name)[:12])
        if match is None or int(match[2]) == 0:
            raise Refused(f"it holds an array of {str(name)[:20]!r}, which no data file needs")
        self.dtype = np.dtype(object) if match[1] == "O" else np.dtype(match[0])

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise Refused("it holds an array of records, which no data file needs")
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise Refused("it holds a dtype of an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


class Array(np.ndarray):
    """An array that checks its content before it takes it."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, Dtype) or type(shape) is not tuple or len(shape) > 8:
            raise Refused("it holds an array whose shape or dtype is damaged")
        if not all(type(length) is int and 0 <= length < 2**48 for length in shape):
            raise Refused("it holds an array whose shape or dtype is damaged")
        dtype, count = dtype.dtype, math.prod(shape)
        of_objects = dtype.kind == "O"
        if not isinstance(content, list if of_objects else bytes | bytearray | str):
            raise Refused("it holds an array of objects without the objects, or of numbers without the bytes")
        if len(content) != (count if of_objects else count * dtype.itemsize):
            raise Refused(f"its array of shape {shape} and type {dtype} has {len(content)} entries or bytes")
        if not isinstance(content, list):
            content = content.encode("latin1") if isinstance(content, str) else bytes(content)
            if dtype.kind == "U" and np.frombuffer(content, f"{dtype.str[0]}u4").max(initial=0) > sys.maxunicode:
                raise Refused("it holds text with characters that do not exist")
        super().__setstate__((1, shape, dtype, bool(fortran), content))  # pyright: ignore[reportArgumentType]


def make_array(shape: Any, dtype: Any, fortran: bool, content: Any) -> Array:
    array = Array((0,), np.int8)
    array.__setstate__((1, shape, dtype, fortran, content))
    return array


def reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    """An empty array, which its state fills."""
    if type(kind) is not AllowedGlobal or kind.call is not None or shape != (0,) or code not in ("b", b"b"):
        raise Refused("it holds an array that does not begin empty")
    return Array((0,), np.int8)


def scalar(dtype: Any, content: Any) -> Any:
    return make_array((1,), dtype, False, content).tolist()[0]


def from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Array:
    return make_array(shape, dtype, order == "F", content)


def encode(text: Any, encoding: Any) -> bytes:
    """Bytes, as protocols before 3 write them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("it encodes text other than bytes")
    return text.encode("latin1")


CORE = ("numpy.core", "numpy._core")
ALLOWED_GLOBALS: dict[tuple[str, str], Callable[..., Any] | None] = {  # those in the field's data files
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): encode,
    **{(module, "bytes"): lambda: b"" for module in ("builtins", "__builtin__")},
    **{(f"{core}.multiarray", "_reconstruct"): reconstruct for core in CORE},
    **{(f"{core}.multiarray", "scalar"): scalar for core in CORE},
    **{(f"{core}.numeric", "_frombuffer"): from_buffer for core in CORE},
}


class Bounded:
    """A file of which no more is read than it has, whatever length a pickle claims, and in at most MAX_READS steps."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left, self.reads = file, file.seek(0, os.SEEK_END), 0
        file.seek(0)

    def read(self, size: int) -> bytes:
        self.reads += 1
        if not 0 <= size <= self.left or self.reads > MAX_READS:
            raise EOFError("it is cut short, or has more steps than a data file needs")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(self.left + 1)
        self.left -= len(line)
        return line


class Unpickler(PythonUnpickler):
    """Python's own with OPCODES only. The one in C takes memory for as many memos as a pickle claims to have."""

    dispatch: ClassVar[dict[int, Any]] = {code: PythonUnpickler.dispatch[code] for code in OPCODES}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise Refused(f"it asks for {module[:80]}.{name[:80]}, which no data file needs")
        return AllowedGlobal(ALLOWED_GLOBALS[module, name])

    def load_frame(self) -> None:
        self.read(8)  # its size; its content is read as if it were in no frame

    def load_bytes(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(function) is not AllowedGlobal or function.call is None or type(arguments) is not tuple:
            raise Refused("it calls something that is no function of a data file")
        self.stack[-1] = function.call(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) not in (Array, Dtype):
            raise Refused("it sets the state of something other than an array")
        self.stack[-1].__setstate__(state)

    def set_items(self, target: Any, items: list[Any]) -> None:
        names = items[::2]
        if type(target) is not dict or not all(type(name) in (str, bytes, int, float, bool) for name in names):
            raise Refused("it holds a dict with keys other than text and numbers")
        target.update(zip(names, items[1::2], strict=True))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items(self.stack[-1], items)

    def load_setitem(self) -> None:
        value, name = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [name, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()  # changes self.stack
        self.set_items(self.stack[-1], items)

    dispatch |= {
        pickle.FRAME[0]: load_frame,
        pickle.BYTEARRAY8[0]: load_bytes,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def load_pickle(path: Path) -> Any:
    """Content of a pickle; strings of Python 2 are read as latin-1.

    Raises:
        UserError: the file cannot be read, is a web page, is cut short, or would run something.
    """
    with open_data_file(path, WHAT) as file:
        return unpickle(file, path)


def unpickle(file: BinaryIO, path: Path) -> Any:
    """`load_pickle` of an open file, as a member of an archive is. `path` names it in messages."""
    with read_errors(path, WHAT):
        return Unpickler(Bounded(file), encoding="latin1").load()
