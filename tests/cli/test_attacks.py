"""Attacks that need no training; `python -m scripts.attack` offers all of them as real commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.attacks import ATTACKS, SECRET, Attack, offer
from tests.helpers.command_line import command

CHECKPOINTS = {"A1", "A2", "A8"}  # tests/checkpointing/test_strangers_checkpoints.py has these
QUICK = [
    attack
    for attack in ATTACKS
    if attack.case not in CHECKPOINTS and (attack.status or "mode=report" in attack.command)
]


@pytest.mark.parametrize("attack", QUICK, ids=lambda attack: f"{attack.case} {attack.name}")
def test_a_strangers_file_is_refused_or_passed_over(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def typed(folder: Path, arguments: tuple[str, ...]) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        status = command(*arguments)
        return status, "".join(capfd.readouterr())

    monkeypatch.setenv("SECRET", SECRET)
    assert offer(attack, tmp_path / "here", typed) == []
