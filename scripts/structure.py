"""Print figures of the package's structure: its size, longest file and function, import levels, repeated names.

python -m scripts.structure [FOLDER]      FOLDER is metarun/ unless given, such as that of another checkout
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def modules(package: Path) -> dict[str, ast.Module]:
    """Dotted module name, the package's own included -> its syntax tree."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join((package.name, *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports when it is imported itself."""
    found: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {one if one in trees else node.module for one in full} & trees.keys()
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & trees.keys()
        found[name].discard(name)
    return found


def levels(graph: dict[str, set[str]]) -> int:
    """Modules on the longest chain of imports."""

    @cache
    def height(name: str) -> int:
        return 1 + max(map(height, graph[name]), default=0)

    return max(height(name) for name in graph)


def functions(trees: dict[str, ast.Module]) -> Iterator[tuple[int, str]]:
    """Length in lines and dotted name of each function and method."""
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{name}.{node.name}"


def repeated_names(trees: dict[str, ast.Module]) -> list[str]:
    """Functions and classes that more than one module defines at its top."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    defined = Counter(node.name for tree in trees.values() for node in tree.body if isinstance(node, kinds))
    return sorted(name for name, count in defined.items() if count > 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "metarun")
    package = parser.parse_args().folder
    trees = modules(package)
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in package.rglob("*.py")}
    longest_file = max(lines, key=lambda path: lines[path])
    length, function = max(functions(trees))
    repeated = repeated_names(trees)
    print(f"lines                     {sum(lines.values())} in {len(lines)} files")
    print(f"modules at the top        {sum(path.parent == package for path in lines)}")
    print(f"longest file              {lines[longest_file]} lines, {longest_file.relative_to(package)}")
    print(f"longest function          {length} lines, {function}")
    print(f"import levels             {levels(imports(trees))}")
    print(f"names in several modules  {len(repeated)}: {', '.join(repeated)}")


if __name__ == "__main__":
    main()
