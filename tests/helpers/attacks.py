"""Files that a stranger may hand over: each is made, offered to the real command, and must be refused or passed over.

A canary tells what must not happen: CANARY is a file outside that nothing may make or change, and SECRET a word of the
environment that nothing may write down.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from metarun.checkpointing import store
from metarun.runner import run as train
from tests.helpers.crafted import changed
from tests.helpers.report_runs import run as finished_run
from tests.helpers.small_runs import small

CANARY = "canary"
SECRET = "SECRET-of-the-environment"
UNTOUCHED = "as it was\n"


class Attack(NamedTuple):
    """A case: `make` lays it out in an empty folder; `command` is what is typed there."""

    case: str
    name: str
    make: Callable[[Path], object]
    command: tuple[str, ...]
    status: int  # 2: refused; 0: passed over, and the rest goes on
    words: str  # of what is told


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pictures(folder: Path) -> Path:
    """Class folders of a picture or two each."""
    for label in "abcdefghij":
        for number in range(4):
            place = folder / f"pics/{label}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(picture())
    return folder / "pics"


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {CANARY}-ran",)


def cifar(content: bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        place = folder / "data/cifar-100-python"
        place.mkdir(parents=True)
        for part in ("train", "test", "meta"):
            (place / part).write_bytes(content)

    return make


POINTERS = b"\x80\x02cnumpy\nndarray\nK\x01\x85U\x02O8U\x08AAAAAAAA\x87R."


def linked_log(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/metarun.log").symlink_to(folder / CANARY)


def linked_records(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/.hydra").symlink_to(folder)


def postscript(folder: Path) -> None:
    (pictures(folder) / "a/photo.jpg").write_bytes(
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({CANARY}-ran) (w) file closefile\n".encode()
    )


def name_with_a_line(folder: Path) -> None:
    (pictures(folder) / "a" / "x\n[INFO] accuracy 100 %\x1b[2J.png").write_bytes(b"no picture")


def pipe_among_pictures(folder: Path) -> None:
    os.mkfifo(pictures(folder) / "a/pipe.png")


def pipe(name: str) -> Callable[[Path], object]:
    return lambda folder: os.mkfifo(folder / name)


def bad_run(name: str, content: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        finished_run(folder / "runs/good")
        finished_run(folder / "runs/bad", seed=1)
        (folder / "runs/bad" / name).write_text(content)

    return make


def bad_mean(value: str) -> Callable[[Path], object]:
    content = finished_text().replace('"mean": 0.5,', f'"mean": {value},', 1)
    return bad_run("result.json", content)


def finished_text() -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return (finished_run(Path(folder) / "run") / "result.json").read_text()


def climbing_archive(folder: Path) -> None:
    (folder / "data").mkdir()
    with tarfile.open(folder / "data/CUB_200_2011.tgz", "w:gz") as archive:
        info = tarfile.TarInfo(f"../../{CANARY}")
        archive.addfile(info, io.BytesIO())


HUBCONF = f"import os\nos.system('touch {CANARY}-ran')\ndef x(**options):\n    return None\n"
CALLBACK = "hydra:\n  callbacks:\n    x: {_target_: torch.hub.load, repo_or_dir: stranger, model: x, source: local}\n"


def checkpoint(*places: str, value: object) -> Callable[[Path], object]:
    """A run folder `stranger` whose checkpoints hold `value` at `places`; beside it, code that a name could reach."""

    def make(folder: Path) -> None:
        run = folder / "stranger"
        run.mkdir()
        (run / "evil.yaml").write_text(CALLBACK)
        (run / "hubconf.py").write_text(HUBCONF)
        train(small(folder, iterations=20), run)
        (run / "result.json").unlink()
        for path in (store.best_checkpoint_path(run), store.step_checkpoint_path(run, 20)):
            changed(path, "settings", *places, value=value)

    return make


def zeroed_cache(folder: Path) -> None:
    """Pictures whose prepared file in `cache` has a middle of zeros."""
    pictures(folder)
    prepare = [sys.executable, "-m", "metarun", *FOLDER, "hydra.run.dir=first"]
    subprocess.run(prepare, cwd=folder, check=True, capture_output=True)
    for path in (folder / "cache").rglob("*.npy"):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes(100) + content[middle + 100 :])


BOMB = "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'seed=1'}]\n" for i in range(12))
REPORT = ("mode=report", "runs=runs", "hydra.run.dir=made")
FOLDER = (
    "dataset=folder",
    "dataset.root=pics",
    "iterations=1",
    "meta_batch=1",
    "inner_loop=1",
    "cache_dir=cache",
    "ways=2",
    "queries=1",
)
FOLDER += ("eval.every=1", "eval.tasks=2", "eval.validation_tasks=2", "hydra.run.dir=made", "device=cpu")
CIFAR = ("dataset=cifar_fs", "cache_dir=cache", "data_dir=data", "hydra.run.dir=made", "device=cpu")
EVALUATE = ("mode=evaluate", "checkpoint=stranger", "eval.tasks=4", "hydra.run.dir=made")
EVIL = "../../../../proc/self/cwd/stranger/evil"
HERE = ("hydra.run.dir=run", "dataset=sinusoid", "iterations=1")

ATTACKS = [
    *(
        Attack(
            "A1", f"a saved {group} that names a file", checkpoint(group, "name", value=EVIL), words, 2, f"{group}.name"
        )
        for group in ("dataset", "backbone", "method")
        for words in (EVALUATE, ("resume=stranger",))
    ),
    Attack(
        "A1",
        "a saved method with another override",
        checkpoint("method", "name", value="maml,hydra/launcher=joblib"),
        EVALUATE,
        2,
        "method.name",
    ),
    Attack(
        "A2", "a saved path that reads the environment", checkpoint("start", value="${oc.env:SECRET}"), EVALUATE, 0, ""
    ),
    Attack(
        "A2",
        "a saved folder that reads the environment",
        checkpoint("cache_dir", value="${oc.env:SECRET}/x"),
        EVALUATE,
        0,
        "",
    ),
    Attack(
        "A8", "a saved method that is a list", checkpoint("method", "name", value=["maml"]), EVALUATE, 2, "method.name"
    ),
    Attack("A8", "saved ways that are a word", checkpoint("ways", value="many"), EVALUATE, 2, "settings.ways"),
    Attack("A9", "a prepared file with a middle of zeros", zeroed_cache, FOLDER, 0, "is made again"),
    Attack("A3", "pointers in a data pickle", cifar(POINTERS), CIFAR, 2, "not a pickle of arrays"),
    Attack("A3", "code in a data pickle", cifar(pickle.dumps(Exploit())), CIFAR, 2, "which no data file needs"),
    Attack("A4", "a log that is a link to a file outside", linked_log, HERE, 2, "it is a link"),
    Attack("A4", "records that are a link to a folder outside", linked_records, HERE, 2, "it is a link"),
    Attack("A4", "a name with a line of the log in it", name_with_a_line, FOLDER, 0, r"x\n[INFO] accuracy"),
    Attack("A5", "PostScript as photo.jpg", postscript, FOLDER, 0, "not a picture of a known format"),
    Attack("A6", "a pipe among the pictures", pipe_among_pictures, FOLDER, 0, ""),
    Attack("A6", "a pipe as a CSV", pipe("list.csv"), (*FOLDER, "dataset.root=list.csv"), 2, "list.csv"),
    Attack(
        "A6",
        "a pipe as a checkpoint",
        pipe("x.pt"),
        ("mode=evaluate", "checkpoint=x.pt"),
        2,
        "no such file, nor a run folder",
    ),
    Attack("A6", "a pipe as a run to go on with", pipe("x"), ("resume=x",), 2, "not a run folder"),
    Attack("A6", "a pipe as runs", pipe("runs"), REPORT, 2, "no such folder"),
    Attack("A7", "a bomb of aliases", bad_run(".hydra/overrides.yaml", BOMB), REPORT, 0, "alias"),
    Attack("A7", "a mean of NaN", bad_mean("NaN"), REPORT, 0, "nan"),
    Attack("A7", "a mean of 10**400", bad_mean(str(10**400)), REPORT, 0, "64 bits"),
    Attack("A7", "lists in lists", bad_run("result.json", "[" * 10**5), REPORT, 0, "nested"),
    Attack(
        *("archive", "a member that climbs out", climbing_archive),
        *(("dataset=cub", "cache_dir=cache", "data_dir=data", "hydra.run.dir=made"), 2, "outside"),
    ),
]


def escaped(folder: Path, told: str) -> list[str]:
    """What an attack has come to that it must not: nothing, where it was refused."""
    found = [path.name for path in folder.parent.rglob(f"{CANARY}-*")]
    if (folder / CANARY).read_text() != UNTOUCHED:
        found.append("a file outside was changed")
    if SECRET in told or any(
        SECRET in path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()
    ):
        found.append("a secret was written down")
    if "\x1b" in told or "Traceback" in told:
        found.append("an escape sequence or a traceback on the terminal")
    return found


def offer(attack: Attack, folder: Path, command: Callable[[Path, tuple[str, ...]], tuple[int, str]]) -> list[str]:
    """Make the files in a folder, type the command there, and return what went wrong.

    Args:
        command: runs metarun in a folder; returns its exit status and all that it printed. It raises TimeoutError
            where it waits.
    """
    folder.mkdir(parents=True)
    (folder / CANARY).write_text(UNTOUCHED)
    attack.make(folder)
    status, told = command(folder, attack.command)
    wrong = escaped(folder, told)
    if status != attack.status:
        wrong.append(f"exit status {status}: {told[-300:]}")
    if attack.words not in told:
        wrong.append(f"does not tell {attack.words!r}: {told[-300:]}")
    return wrong
