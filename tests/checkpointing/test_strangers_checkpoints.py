"""Checkpoints that someone made to do harm: each is refused in one line or stays plain data; canaries show it."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from metarun.checkpointing import file_format, store
from metarun.checkpointing.state import CheckpointState
from metarun.config.groups import Folder, Glyphs
from metarun.errors import UserError
from metarun.runner import run
from scripts import fuzz_checkpoints
from scripts.survival import differences
from tests.helpers.command_line import command
from tests.helpers.crafted import changed
from tests.helpers.small_runs import small

EVIL = "../../../../proc/self/cwd/stranger/evil"
HUBCONF = "from pathlib import Path\nPath('ran').mkdir()\ndef x(**options):\n    return None\n"
CALLBACK = "hydra:\n  callbacks:\n    x: {_target_: torch.hub.load, repo_or_dir: stranger, model: x, source: local}\n"


@pytest.fixture
def stranger(alone: None) -> Path:
    """The best checkpoint of a run folder that a stranger gave."""
    Path("stranger").mkdir()
    run(small(Path.cwd(), iterations=20), Path("stranger"))
    for name in ("checkpoints/step-00000020.safetensors", "result.json"):
        (Path("stranger") / name).unlink()
    return store.best_checkpoint_path(Path("stranger"))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    assert command(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sorted(Path.cwd().rglob("*")) == before
    return line


@pytest.mark.parametrize("group", ["method", "dataset", "backbone"])
@pytest.mark.parametrize("asked", ["mode=evaluate checkpoint=stranger", "resume=stranger"])
def test_a_saved_name_chooses_no_config_of_the_stranger_s(stranger: Path, capsys, group: str, asked: str) -> None:
    Path("stranger/evil.yaml").write_text(CALLBACK)
    Path("stranger/hubconf.py").write_text(HUBCONF)
    changed(stranger, "settings", group, "name", value=EVIL)
    stranger.rename(stranger.with_name("step-00000020.safetensors"))
    line = refused(capsys, *asked.split())
    assert f"settings.{group}.name is '../../" in line and not Path("ran").exists()


@pytest.mark.parametrize(
    "name", ["maml,hydra/launcher=joblib", "maml'", "maml hydra.run.dir=made", "maml@x", "[maml]", ""]
)
def test_a_saved_name_is_a_known_one_or_refused(stranger: Path, capsys, name: str) -> None:
    changed(stranger, "settings", "method", "name", value=name)
    assert "known are maml, fomaml" in refused(capsys, "mode=evaluate", "checkpoint=stranger")


def test_saved_text_is_not_resolved(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush-hush")
    for key, value in {
        "start": "${oc.env:SECRET}",
        "data_dir": "${metarun.run_folder:null}",
        "cache_dir": "${oc.env:SECRET}/${metarun.run_folder:null}",
    }.items():
        changed(stranger, "settings", key, value=value)
    assert command("mode=evaluate", "checkpoint=stranger", "eval.tasks=4", "hydra.run.dir=made") == 0
    found = json.loads(Path("made/result.json").read_text())
    assert found["start"] == found["settings"]["start"] == str(Path.cwd() / "${oc.env:SECRET}")  # made absolute
    assert not Path("outputs").exists() and sorted(path.name for path in Path().iterdir()) == ["made", "stranger"]
    for path in Path("made").rglob("*"):
        assert not path.is_file() or b"hush-hush" not in path.read_bytes()


def test_nothing_is_written_where_a_checkpoint_says(alone: None, tmp_path: Path, capsys) -> None:
    """A saved cache_dir is never used, and nothing is downloaded into a saved data_dir."""
    from metarun.cli import settings as meeting
    from metarun.config.schema import Settings

    settings = small(tmp_path, dataset=Glyphs(), cache_dir="stranger/cache", data_dir="stranger/data", download=True)
    Path("stranger/checkpoints").mkdir(parents=True)
    store.save(store.step_checkpoint_path(Path("stranger"), 1), CheckpointState(settings, {}, {}, step=1))
    now = Settings(dataset=Glyphs(), backbone=settings.backbone, method=settings.method, download=True)
    for asked in ({"resume": "stranger"}, {"mode": "evaluate", "checkpoint": "stranger"}):
        met = meeting.merge_with_checkpoint(replace(now, **asked), [])  # type: ignore[arg-type]
        assert met.cache_dir == now.cache_dir and met.data_dir == "stranger/data" and not met.download
        typed = meeting.merge_with_checkpoint(replace(now, data_dir="mine", **asked), ["data_dir"])  # type: ignore[arg-type]
        assert typed.data_dir == "mine" and typed.download


def test_a_data_set_without_default_is_taken_as_plain_text(alone: None, tmp_path: Path, capsys) -> None:
    for root in ("${oc.env:HOME}", "a'b,c=d", "it's"):
        settings = small(tmp_path, dataset=Folder(root=root))
        store.save(tmp_path / "one.safetensors", CheckpointState(settings, {}, {}))
        assert f"dataset.root={root}: no such" in refused(capsys, "mode=evaluate", "checkpoint=one.safetensors")


# --- values of the wrong type --------------------------------------------------------------------------------

WRONG: list[Any] = [
    None,
    True,
    3,
    -1,
    2**63 - 1,
    0.5,
    "x",
    "nan",
    "~no-such-user/x",
    [],
    [[]],
    ["x"],
    {},
    {"name": "maml"},
]


def test_any_wrong_value_in_any_place_is_told_in_one_line(tmp_path: Path) -> None:
    path, held = tmp_path / "one.safetensors", tmp_path / "held.safetensors"
    store.save(held, fuzz_checkpoints.example())
    content, tensors = file_format.read(held)
    places = [list(way) for way in ways(content)]
    assert len(places) > 80
    for way in places:
        for value in WRONG:
            new = json.loads(json.dumps(content))
            node = new
            for key in way[:-1]:
                node = node[key]
            node[way[-1]] = value
            path.write_bytes(file_format.encode(new, tensors))
            for load in (store.load, store.load_settings):
                try:
                    load(path)
                except UserError as error:
                    assert len(str(error).splitlines()) == 1 and "one.safetensors" in str(error)


@pytest.mark.parametrize("group", ["dataset", "backbone", "method"])
def test_settings_without_a_group_are_refused(tmp_path: Path, group: str) -> None:
    path = tmp_path / "one.safetensors"
    store.save(path, fuzz_checkpoints.example())
    content, tensors = file_format.read(path)
    del content["settings"][group]
    path.write_bytes(file_format.encode(content, tensors))
    for load in (store.load, store.load_settings):
        with pytest.raises(UserError, match=rf"one.safetensors.* has no {group}"):
            load(path)


def ways(node: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [way for key in keys for way in ((*before, key), *ways(node[key], (*before, key)))]


@pytest.mark.parametrize("value", [[], {}, ["maml"], {"name": "maml"}, None, 3, True, 1.5])
@pytest.mark.parametrize("mode", ["evaluate", "predict"])
def test_a_wrong_type_of_a_name_is_told_by_the_command(stranger: Path, capsys, mode: str, value: Any) -> None:
    changed(stranger, "settings", "method", "name", value=value)
    words = ["support=stranger", "query=stranger"] if mode == "predict" else []
    assert "settings.method.name is" in refused(capsys, f"mode={mode}", "checkpoint=stranger", *words)


@pytest.mark.parametrize(
    ("key", "value"),
    [("data_dir", "~no-such-user/x"), ("data_dir", "a" * 300), ("data_dir", "a\0b"), ("ways", "many"), ("eval", 3)],
)
def test_a_value_that_no_path_or_number_can_be(stranger: Path, capsys, key: str, value: Any) -> None:
    changed(stranger, "settings", key, value=value)
    assert command("mode=evaluate", "checkpoint=stranger", "eval.tasks=4", "hydra.run.dir=made") in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_generator_s_position_beyond_its_words_is_refused(tmp_path: Path) -> None:
    """numpy would read its memory there."""
    settings = small(tmp_path)
    run(settings, tmp_path / "run")
    path = store.latest_intact_checkpoint(tmp_path / "run")
    numpy = file_format.read(path)[1]["generators/numpy"]
    for place, value in ((624, 10**6), (624, -1), (625, 2), (0, -1), (0, 2**32)):
        other = numpy.clone()
        other[place] = value
        changed(path, generators__numpy=other)
        with pytest.raises(UserError, match="its generator numpy is at no state that it can be in"):
            run(replace(settings, resume="x"), tmp_path / "run")


# --- the file ------------------------------------------------------------------------------------------------


def sealed(content: Any = None) -> bytes:
    state = CheckpointState(small(Path("x")), {"w": torch.arange(6.0).reshape(2, 3)}, {}, step=3)
    return file_format.encode(*state.parts()) if content is None else file_format.encode(content, {})


def with_header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def table(**entries: tuple[str, list[int], list[int]]) -> bytes:
    names = ("dtype", "shape", "data_offsets")
    return json.dumps({name: dict(zip(names, entry, strict=True)) for name, entry in entries.items()}).encode()


NONE = ("U8", [0], [0, 0])
FOUR = ("U8", [4], [0, 4])
HARMFUL: dict[str, tuple[Callable[[], bytes], str]] = {
    "a header of 2**60 bytes": (lambda: struct.pack("<Q", 2**60), "fewer than its header needs"),
    "a header of 100 MB": (lambda: with_header(b" " * 10**8), "at most 4194304"),
    "a header beyond the file": (lambda: struct.pack("<Q", 100) + b"{}", "cut short"),
    "deep nesting": (lambda: with_header(b"[" * 10**5), "nested more than 50 deep"),
    "brackets in text are none": (lambda: with_header(b'{"[[[[[[[[[[[[[[[[[[[[[[[[[": 1'), "no JSON"),
    "very many values": (lambda: with_header(b"[" + b"{}," * 10**6 + b"1]"), "more than 300000 values"),
    "very many tensors": (lambda: with_header(table(**dict.fromkeys(map(str, range(16385)), NONE))), "at most 16384"),
    "a number of 10**400": (lambda: with_header(b'{"a": 1' + b"0" * 400 + b"}"), "more than 64 bits"),
    "a number that is not finite": (lambda: with_header(b'{"a": 1e999}'), "not finite"),
    "NaN": (lambda: with_header(b'{"a": NaN}'), "no JSON"),
    "a name twice": (lambda: with_header(b'{"a": 1, "a": 2}'), "no valid type"),
    "bytes that are no ASCII": (lambda: with_header('{"ä": 1}'.encode()), "not ASCII"),
    "a tensor of 2**62 elements": (lambda: with_header(table(a=("U8", [2**31, 2**31], [0, 2**62]))), "no valid type"),
    "a huge empty tensor": (lambda: with_header(table(a=("F32", [0, 2**62], [0, 0]))), "no valid type"),
    "an unknown type": (lambda: with_header(table(a=("C64", [1], [0, 8])), bytes(8)), "is of type"),
    "tensors over one another": (lambda: with_header(table(a=FOUR, b=("U8", [4], [2, 6])), bytes(6)), "does not begin"),
    "a gap": (lambda: with_header(table(a=FOUR, b=("U8", [4], [6, 10])), bytes(10)), "does not begin"),
    "bytes left over": (lambda: with_header(table(a=FOUR), bytes(9)), "the file has 9"),
    "another shape": (lambda: sealed().replace(b'"shape":[2,3]', b'"shape":[3,2]'), "SHA-256"),
    "another name": (lambda: sealed().replace(b'"theta/w"', b'"theta/v"'), "SHA-256"),
    "another step": (lambda: sealed().replace(b'\\"step\\":3', b'\\"step\\":4'), "SHA-256"),
    "no digest": (lambda: sealed().replace(b'"sha256"', b'"sha255"'), "something else than a checkpoint's"),
    "no settings": (lambda: sealed({"step": 3}), "has no settings"),
    "an unknown key": (lambda: sealed({"step": 3, "colour": 1}), "'colour'"),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMFUL)
def test_a_harmful_file_is_refused_in_little_memory(what: str, tmp_path: Path) -> None:
    make, told = HARMFUL[what]
    path = tmp_path / "evil.safetensors"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"^checkpoint .*evil\.safetensors: ") as raised:
            store.load(path)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size + 64 * 2**20
    finally:
        tracemalloc.stop()
    assert told in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_the_most_that_a_header_may_hold_fits_the_memory(tmp_path: Path) -> None:
    """The costliest values for their bytes, and text whose letters take four bytes."""
    costly = b'{"":1},' * 75_000
    for text in (b"[" + costly + b"1]", b'["' + b"\\ud83d\\ude00" * 320_000 + b'"]'):
        assert len(text) < file_format.MAX_HEADER_BYTES
        tracemalloc.start()
        try:
            file_format.parse_json(text)
            assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
        finally:
            tracemalloc.stop()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "not a regular file" in str(store.integrity_error(tmp_path / "pipe.safetensors"))


def test_mutations_load_the_same_or_are_refused() -> None:
    assert not fuzz_checkpoints.wrong(fuzz_checkpoints.fuzz(200, seed=1))


# --- what is no harm -----------------------------------------------------------------------------------------


def test_what_is_saved_comes_back_to_the_bit_and_other_programs_read_it(tmp_path: Path) -> None:
    path, state = tmp_path / "a.safetensors", fuzz_checkpoints.example()
    state = replace(state, settings=replace(state.settings, data_dir="odd\udce9\n\x1b${x}", start="ä"))
    store.save(path, state)
    found = store.load(path)
    assert list(differences(found, state, "state")) == [] and found.settings == state.settings
    assert store.load_settings(path) == state.settings
    with safe_open(path, "np") as file:
        np.testing.assert_array_equal(file.get_tensor("theta/layers.0.weight"), state.theta["layers.0.weight"].numpy())
        assert file.metadata()["format"] == file_format.FORMAT
    store.save(tmp_path / "b.safetensors", found)
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    state = fuzz_checkpoints.example()
    for wrong, told in (
        (replace(state, theta={"w": torch.ones(2, dtype=torch.complex64)}, phi={}), "must be floating point"),
        (replace(state, exp_avg={}), "moments are of other parameters"),
        (replace(state, step="3"), "step is '3', must be a whole number"),
        (replace(state, settings=replace(state.settings, ways=0)), "ways=0"),
    ):
        with pytest.raises(UserError, match=r"cannot be saved: .*") as raised:
            store.save(tmp_path / "a.safetensors", wrong)
        assert told in str(raised.value) and not list(tmp_path.iterdir())


def test_a_large_file_is_checked_a_piece_at_a_time(tmp_path: Path) -> None:
    store.save(tmp_path / "a.safetensors", CheckpointState(small(tmp_path), {"w": torch.zeros(2**24)}, {}))
    tracemalloc.start()
    try:
        assert store.integrity_error(tmp_path / "a.safetensors") is None
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
