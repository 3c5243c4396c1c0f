"""Standard output: any locale, and wherever it leads. No line is a traceback, whatever becomes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tests
from metarun.utils import console

ROOT = Path(tests.__file__).parents[1]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SAY = """
import sys
from metarun.utils import console

console.prepare()
print("\\u00b1 5 \\u00e9 \\u5b57")
open("kept", "wb").close()
print("more")
sys.exit(console.status(0))
"""


@pytest.mark.parametrize(
    ("leads", "status", "shown"),
    [
        ("", 0, "+/- 5 e ?\nmore\n"),
        ("> /dev/full", 1, "metarun: error: standard output could not be written (No space left on device)\n"),
        ("| true", 0, ""),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
    ],
)
def test_every_output_takes_every_text(tmp_path: Path, leads: str, status: int, shown: str) -> None:
    (tmp_path / "say.py").write_text(SAY)
    line = f"set -o pipefail; {sys.executable} say.py {leads}"
    environment = {**os.environ, **C_LOCALE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (status, shown)
    assert (tmp_path / "kept").read_bytes() == b""  # a file did not take the place of a closed output


def test_what_an_output_cannot_show_is_written_in_its_letters() -> None:
    console.prepare()
    assert "50 ± 2 %, Łódź, naïve → \udce9".encode("ascii", console.ERRORS) == b"50 +/- 2 %, ?odz, naive -> ?"
    assert "±".encode("latin-1", console.ERRORS) == b"\xb1"


def test_the_command_ends_well_in_the_c_locale(tmp_path: Path) -> None:
    words = ["dataset=sinusoid", "backbone.hidden=[4]", "iterations=2", "eval.every=2", "hydra.run.dir=run"]
    words += ["eval.tasks=2", "eval.validation_tasks=2"]
    environment = {**os.environ, **C_LOCALE, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    line = [sys.executable, "-m", "metarun", *words]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b" +/- " in done.stdout
    assert "±" in (tmp_path / "run/metarun.log").read_text(encoding="utf-8")
