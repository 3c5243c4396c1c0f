"""Every attack of tests/helpers/attacks.py by the real command, as a table: what was offered and what came of it.

python -m scripts.attack [--only WORD]

Exit status 1 where one was not refused or passed over, or where something ran, was written outside or was resolved.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.attacks import ATTACKS, SECRET, offer

ROOT = Path(__file__).resolve().parent.parent

AT_MOST = 120  # seconds: a command that goes on waits for something
FUZZ = ROOT / "scripts" / "fuzz_checkpoints.py"


def command(folder: Path, arguments: tuple[str, ...]) -> tuple[int, str]:
    environment = {**os.environ, "SECRET": SECRET, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, "-m", "metarun", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=AT_MOST,
        check=False,
    )
    return made.returncode, (made.stdout + made.stderr).decode(errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="attacks with this word in their case or name")
    only = parser.parse_args().only
    failed = 0
    with tempfile.TemporaryDirectory() as top:
        for number, attack in enumerate(ATTACKS):
            if only not in f"{attack.case} {attack.name}":
                continue
            try:
                wrong = offer(attack, Path(top) / str(number), command)
            except subprocess.TimeoutExpired:
                wrong = [f"still waits after {AT_MOST} s"]
            outcome = "; ".join(wrong) or ("refused" if attack.status else "left out, the rest went on")
            print(f"{attack.case:8} {attack.name:45} {outcome}", flush=True)
            failed += bool(wrong)
    if FUZZ.exists() and not only:
        failed += subprocess.run([sys.executable, FUZZ], check=False).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
