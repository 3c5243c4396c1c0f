"""The house's plan: which part may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import metarun

PACKAGE = Path(metarun.__file__).parent
APART = ("methods", "backbones", "data")  # never import each other
COMMAND = ("cli", "__main__", "help", "mistakes", "settings", "sweep_progress", "sweeps", "typed")


def imports() -> dict[str, set[str]]:
    """Module -> the modules of metarun that it imports, as names below the package."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "metarun":
                below = (node.module or "").removeprefix("metarun").removeprefix(".")
                names |= {below} if below else {alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {
                    alias.name.removeprefix("metarun.") for alias in node.names if alias.name.startswith("metarun.")
                }
        found[module] = names
    return found


def test_methods_backbones_and_data_do_not_know_each_other() -> None:
    for module, names in imports().items():
        part = module.split(".")[0]
        if part in APART:
            others = {name for name in names if name.split(".")[0] in APART and name.split(".")[0] != part}
            assert not others, f"{module} imports {others}"


def test_nothing_imports_the_runner_but_the_command_line() -> None:
    importers = {module for module, names in imports().items() if "runner" in names}
    assert importers and importers <= set(COMMAND)


def test_hydra_stays_with_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.stem not in COMMAND:
            tree = ast.parse(path.read_text())
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not any(name.split(".")[0] in ("hydra", "omegaconf") for name in names), path


def test_the_meta_learner_knows_nothing_of_data_backbones_or_runs() -> None:
    allowed = {"errors", "methods", "methods.slots", "norm", "objective", "precision", "task"}
    allowed |= {"activation_checkpoints", "second_order"}
    assert imports()["activation_checkpoints"] == set() and imports()["second_order"] == {"errors"}
    assert imports()["forward"] <= allowed and imports()["meta"] <= allowed | {"forward"}
