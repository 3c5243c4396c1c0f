"""Pickles as data: numpy arrays and Python's own containers, and nothing that could run.

A pickle is a program for a stack of values. Of its operations those are carried out that put plain values and
containers; of the names that it may ask for, those of arrays, each stood for by a function that checks its arguments.
"""

from __future__ import annotations

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
MAX_READS = 2**21  # of an operation or its argument: the most in a data file are 10**6, and none makes over 100 bytes
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
    """The pickle holds what no data file needs."""


class AllowedGlobal:
    """Stands for a name of Python's: it can be called, if at all, and holds nothing that a pickle could change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        if self._call is None:
            raise Refused("it calls what is only a name in a data file")
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("it changes what is not its own")


class Dtype:
    """A dtype of numbers, text or objects, whose byte order follows its name."""

    def __init__(self, name: Any, *_: Any) -> None:
        found = re.fullmatch(r"([biufSUO])(\d{1,9})", name.decode() if isinstance(name, bytes) else str(name)[:12])
        if found is None or (int(found[2]) == 0):
            raise Refused(f"it holds an array of {str(name)[:20]!r}, which no data file needs")
        self.dtype = np.dtype(object) if found[1] == "O" else np.dtype(found[0])

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise Refused("it holds an array of parts, which no data file needs")
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise Refused("it holds a dtype of no known byte order")
        self.dtype = self.dtype.newbyteorder(order)


class Array(np.ndarray):
    """Takes its content once it has been checked."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self._take(shape, dtype, bool(fortran), content)

    def _take(self, shape: Any, dtype: Any, fortran: bool, content: Any) -> None:
        if not isinstance(dtype, Dtype) or not isinstance(shape, tuple) or len(shape) > 8:
            raise Refused("it holds an array whose shape or dtype is damaged")
        if not all(type(length) is int and 0 <= length < 2**48 for length in shape):
            raise Refused("it holds an array whose shape or dtype is damaged")
        of_objects, count = dtype.dtype.kind == "O", math.prod(shape)
        if not isinstance(content, list if of_objects else bytes | bytearray | str):
            raise Refused("it holds an array of objects without the objects, or of numbers without the bytes")
        if len(content) != (count if of_objects else count * dtype.dtype.itemsize):
            raise Refused(f"its array of shape {shape} and type {dtype.dtype} has {len(content)} entries or bytes")
        content = content.encode("latin1") if isinstance(content, str) else content
        if (
            dtype.dtype.kind == "U"
            and np.frombuffer(content, f"{dtype.dtype.str[0]}u4").max(initial=0) > sys.maxunicode
        ):
            raise Refused("it holds text of letters that there are not")
        super().__setstate__((1, shape, dtype.dtype, fortran, content if of_objects else bytes(content)))  # pyright: ignore[reportArgumentType]


ARRAY = AllowedGlobal()


def reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    if kind is not ARRAY or shape != (0,) or code not in ("b", b"b"):
        raise Refused("it holds an array that does not begin empty")
    return Array((0,), np.int8)


def scalar(dtype: Any, content: Any) -> Any:
    array = reconstruct(ARRAY, (0,), "b")
    array.__setstate__((1, (1,), dtype, False, content))
    return array.tolist()[0]


def from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = reconstruct(ARRAY, (0,), "b")
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def encode(text: Any, encoding: Any) -> bytes:
    """Bytes, as protocols before 3 have them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("it encodes what is no text of bytes")
    return text.encode("latin1")


def no_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise Refused("it makes bytes of something")
    return b""


CORE = ("numpy.core", "numpy._core")
ALLOWED_GLOBALS: dict[tuple[str, str], AllowedGlobal] = {  # all that the field's data files need
    ("numpy", "ndarray"): ARRAY,
    ("numpy", "dtype"): AllowedGlobal(Dtype),
    ("_codecs", "encode"): AllowedGlobal(encode),
    **{(name, "bytes"): AllowedGlobal(no_bytes) for name in ("builtins", "__builtin__")},
    **{(f"{core}.multiarray", "_reconstruct"): AllowedGlobal(reconstruct) for core in CORE},
    **{(f"{core}.multiarray", "scalar"): AllowedGlobal(scalar) for core in CORE},
    **{(f"{core}.numeric", "_frombuffer"): AllowedGlobal(from_buffer) for core in CORE},
}


class Bounded:
    """A file of which no more is read than it has, however much a pickle claims to be there, in so many steps."""

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
    """Python's own, of OPERATIONS alone. The one in C takes memory for as many memos as a pickle says that it has."""

    dispatch: ClassVar[dict[int, Any]] = {code: PythonUnpickler.dispatch[code] for code in OPCODES}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise Refused(f"it asks for {module[:80]}.{name[:80]}, which no data file needs")
        return ALLOWED_GLOBALS[module, name]

    def load_frame(self) -> None:
        self.read(8)  # its size; what is in it is read as if it were in none

    def load_bytes(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(function) is not AllowedGlobal or type(arguments) is not tuple:
            raise Refused("it calls what is no function of a data file")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) not in (Array, Dtype):
            raise Refused("it builds what no data file needs")
        self.stack[-1].__setstate__(state)

    def set_items(self, target: Any, items: list[Any]) -> None:
        names = items[::2]
        if type(target) is not dict or not all(type(name) in (str, bytes, int, float, bool) for name in names):
            raise Refused("it holds a dict with other names than words and numbers")
        target.update(zip(names, items[1::2], strict=True))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items(self.stack[-1], items)

    def load_setitem(self) -> None:
        value, name = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [name, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
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
