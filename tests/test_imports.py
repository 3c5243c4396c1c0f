"""Which part of the package may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import metarun

PACKAGE = Path(metarun.__file__).parent
ORDER = (  # a part imports only those before it; CONTRIBUTING.md says what each is
    *("errors", "types", "metrics", "utils", "config", "nn", "backbones", "methods", "core", "data", "checkpointing"),
    *("loggers", "engine", "visualization", "distributed", "evaluation", "training", "predict", "report"),
    *("runner", "cli", "__main__"),
)
APART = {"backbones", "methods", "data"}  # never import each other
HYDRA = {"cli"}  # the only part that sees Hydra or OmegaConf


def trees() -> dict[str, ast.Module]:
    """Dotted module name below the package -> its syntax tree, without the package's own module."""
    paths = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    found = {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in found.items() if name != "__init__"}


def imports(tree: ast.Module) -> set[str]:
    """The modules that a module imports, at its top or inside a function, by their full names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def part(name: str) -> str:
    """Of a full name of something in metarun: the package or module at the top that it belongs to."""
    return name.split(".")[1]


def test_every_part_has_its_place_in_the_order() -> None:
    assert {name.split(".")[0] for name in trees()} == set(ORDER)


def test_a_part_imports_only_those_before_it() -> None:
    for name, tree in trees().items():
        own = ORDER.index(name.split(".")[0])
        used = {part(other) for other in imports(tree) if other.startswith("metarun.")} & set(ORDER)
        assert not (later := {other for other in used if ORDER.index(other) > own}), f"{name} imports {later}"


def test_backbones_methods_and_data_do_not_know_each_other() -> None:
    for name, tree in trees().items():
        own = name.split(".")[0]
        used = {part(other) for other in imports(tree) if other.startswith("metarun.")}
        assert own not in APART or not used & (APART - {own}), name


def test_hydra_stays_with_the_command_line() -> None:
    for name, tree in trees().items():
        used = {other.split(".")[0] for other in imports(tree)}
        assert name.split(".")[0] in HYDRA or not used & {"hydra", "omegaconf"}, name
