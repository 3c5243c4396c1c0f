"""Mutate a checkpoint again and again and load it: each is refused in one line, or loads what it held before.

python -m scripts.fuzz_checkpoints [--times 5000] [--seed 0]

Bytes, sizes, offsets, shapes, names and JSON are changed. `resealed` mutations have a right SHA-256, as a stranger's
file may: they are refused, or hold plain data of the documented types. Prints a table; exit status 1 if a mutation was
loaded as something else, ended in another error, was told in several lines, or took more memory than its file and
64 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from metarun.checkpointing import file_format, store
from metarun.checkpointing.state import CheckpointState, Validation
from metarun.config.groups import Mlp, Sinusoid
from metarun.config.methods import Maml
from metarun.config.schema import Settings
from metarun.errors import UserError
from metarun.utils.random_state import get_rng_state
from scripts.survival import differences, table

MOST_MEMORY = 64 * 2**20  # bytes, beside the file's size
ODD = (None, True, -1, 0, 7, 2**63, 10**30, 1.5, 1e300, "", "nan", "${oc.env:HOME}", "../" * 9, [], {}, [[]], {"a": {}})
Mutation = Callable[[bytes, random.Random], bytes]


def example() -> CheckpointState:
    """A checkpoint of a small network in training."""
    settings = Settings(dataset=Sinusoid(), backbone=Mlp(hidden=[8]), method=Maml())
    theta = {f"layers.{k}.{name}": torch.randn(8, k + 1) for k in range(2) for name in ("weight", "bias")}
    names = [f"theta/{name}" for name in theta]
    moments = [{name: torch.randn(8, number // 2 + 1) for number, name in enumerate(names)} for _ in range(2)]
    steps = {name: torch.tensor(3.0) for name in names}
    best = Validation(20, 0.5, float("nan"))
    return CheckpointState(
        settings, theta, {"rate": torch.ones(3, dtype=torch.bfloat16)}, step=20, best=best, top=[best],
        sums={"loss": float("inf")}, exp_avg=moments[0], exp_avg_sq=moments[1], adam_steps=steps,
        generators=get_rng_state(),
    )  # fmt: skip


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def header_bytes(data: bytes, draw: random.Random) -> bytes:
    end = 8 + struct.unpack("<Q", data[:8])[0]
    place, size = draw.randrange(8, end), draw.choice((0, 1, 1, 4))
    return data[:place] + bytes(draw.choice(b'"{}[],:0919e-.\\ntu\x00\xff ') for _ in range(size)) + data[place + 1 :]


def header_length(data: bytes, draw: random.Random) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    other = draw.choice((0, 1, length - 1, length + 1, length * 2, 2**22, 2**22 + 1, 2**40, 2**63, 2**64 - 1))
    return struct.pack("<Q", other) + data[8:]


def cut_or_longer(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))] if draw.random() < 0.7 else data + bytes(draw.randrange(1, 99))


def swapped(data: bytes, draw: random.Random) -> bytes:
    size = draw.choice((1, 8, 64, 512))
    one, two = sorted(draw.sample(range(len(data) // size), 2))
    first, second = data[one * size : (one + 1) * size], data[two * size : (two + 1) * size]
    return data[: one * size] + second + data[(one + 1) * size : two * size] + first + data[(two + 1) * size :]


def tensor_entry(data: bytes, draw: random.Random) -> bytes:
    """Another dtype, shape, offset or name of a tensor, or the place of another."""
    header, rest = split(data)
    names = sorted(set(header) - {"__metadata__"})
    name, other = draw.sample(names, 2)
    kind = draw.randrange(6)
    if kind == 0:
        header[name]["dtype"] = draw.choice((*file_format.DTYPES, "F8_E4M3", "BOOL", "", 3))
    elif kind == 1:
        header[name]["shape"] = draw.choice(([], [2**62, 4], [0], header[name]["shape"][::-1] or [1], ODD))
    elif kind == 2:
        header[name]["data_offsets"][draw.randrange(2)] += draw.choice((-8, -1, 1, 8, 2**40))
    elif kind == 3:
        header[name]["data_offsets"], header[other]["data_offsets"] = (
            header[other]["data_offsets"], header[name]["data_offsets"],
        )  # fmt: skip
    elif kind == 4:
        header[draw.choice((other, "theta/x", "", "x" * 500))] = header.pop(name)
    else:
        header[name] = draw.choice(ODD)
    return joined(header, rest)


def metadata(data: bytes, draw: random.Random) -> bytes:
    header, rest = split(data)
    held = header["__metadata__"]
    key = draw.choice(sorted(held))
    held[key] = draw.choice((flip(held[key].encode(), draw).decode("latin-1"), held[key][:-1], *ODD))
    if draw.random() < 0.2:
        header["__metadata__"] = draw.choice(ODD)
    return joined(header, rest)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry of nested lists and dicts, as what holds it and its name in there."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from places(node[key])


def resealed(data: bytes, draw: random.Random) -> bytes:
    """One entry of the plain content changed, under a right SHA-256."""
    header, rest = split(data)
    held = header["__metadata__"]
    content = json.loads(held["content"])
    node, key = draw.choice(list(places(content)))
    if draw.random() < 0.2 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = draw.choice(ODD)
    held["content"] = json.dumps(content)
    entries = file_format.parse_header(json.loads(json.dumps(header)), len(rest))[1]
    held["sha256"] = hashlib.sha256(file_format.digest_input(held["content"], entries) + rest).hexdigest()
    return joined(header, rest)


MUTATIONS: dict[str, Mutation] = {
    "bits": flip,
    "bytes of the header": header_bytes,
    "length of the header": header_length,
    "end of the file": cut_or_longer,
    "pieces swapped": swapped,
    "dtype, shape, offsets, name of a tensor": tensor_entry,
    "metadata": metadata,
    "plain content, resealed": resealed,
}


def memory() -> int:
    """The most bytes that this process has held since `forget_memory`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def forget_memory() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return memory()


def outcome(path: Path, original: CheckpointState, sealed: bool) -> str:
    """What comes of loading a mutated file: "refused", "equal", "valid" (resealed only), or what is wrong."""
    before = forget_memory()
    try:
        found = store.load(path)
    except UserError as error:
        said = "refused" if len(str(error).splitlines()) == 1 else "told in several lines"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        equal = not list(differences(found, original, "state"))
        said = "equal" if equal else "valid" if sealed else "other content"
    return said if memory() - before <= path.stat().st_size + MOST_MEMORY else "too much memory"


def fuzz(times: int, seed: int = 0) -> dict[str, Counter[str]]:
    """Mutations of each kind in turn, and how often each outcome came of them."""
    draw, original = random.Random(seed), example()
    counts: dict[str, Counter[str]] = {name: Counter() for name in MUTATIONS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.safetensors"
        store.save(path, original)
        whole = path.read_bytes()
        assert outcome(path, original, sealed=False) == "equal"
        for number in range(times):
            name = list(MUTATIONS)[number % len(MUTATIONS)]
            path.write_bytes(MUTATIONS[name](whole, draw))
            counts[name][outcome(path, original, sealed=MUTATIONS[name] is resealed)] += 1
    return counts


def wrong(counts: dict[str, Counter[str]]) -> list[str]:
    return [f"{name}: {said}" for name, found in counts.items() for said in found if said not in RIGHT]


RIGHT = ("refused", "equal", "valid")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    counts = fuzz(asked.times, asked.seed)
    print(table([["mutation", *RIGHT], *([name, *(found[said] for said in RIGHT)] for name, found in counts.items())]))
    print("\n".join(wrong(counts)))
    return int(bool(wrong(counts)))


if __name__ == "__main__":
    sys.exit(main())
