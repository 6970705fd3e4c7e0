"""Counts how dense the code of a folder is, and compares the numbers with the limits of CONTRIBUTING.md.

    python -m benchmarks.style [FOLDER] [--worst 10]

A node is an expression or a statement of the syntax tree. A code line is one that is not blank, not a comment and not
part of a docstring. The number of nodes on a line says how much a reader has to take in at once.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["LIMITS", "Style", "measure", "twins"]

ROOT = Path(__file__).resolve().parents[1]
DIRECTIVE = re.compile(r"#\s*(type:|noqa|fmt:|pragma|mypy|pyright|pylint|ruff)")  # comments that say nothing to people
ANY = re.compile(r"\bAny\b")
SHARED_NAMES = {  # names that stand in two modules and mean the same thing there, and why
    "all": "the export list of a module",
    "dir": "the lazy imports of a package",
    "getattr": "the lazy imports of a package",
    "main": "the entry point of a script",
    "partition": "a function and the class of its result",
    "tensors": "an alias of one type",
}
TABLES = "known"  # a folder whose files hold the same tables, one file per library: they count as one module

Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case)


@dataclass(frozen=True)
class Style:
    """Numbers of a folder of Python files; per 1,000 code lines where no unit is given.

    Args:
        nodes_per_line: Nodes per code line.
        function_nodes: Nodes of the function at the 90th percentile.
        branches: Cyclomatic complexity of the function at the 90th percentile.
        string_comparisons: Comparisons with a string literal.
        any_annotations: Arguments and results annotated with `Any`.
        twins: Top-level names that two modules define, case and underscores apart.
        longest_file: Lines of the longest file.
    """

    nodes_per_line: float
    function_nodes: int
    branches: int
    string_comparisons: float
    any_annotations: float
    twins: int
    longest_file: int


LIMITS = Style(
    nodes_per_line=5.5,
    function_nodes=110,
    branches=6,
    string_comparisons=12,
    any_annotations=15,
    twins=0,
    longest_file=500,
)


@dataclass(frozen=True)
class Source:
    """One file, parsed once."""

    path: Path
    text: str
    tree: ast.Module

    def code_lines(self) -> int:
        """Return the number of lines that hold code."""
        prose = self._docstring_lines() | self._comment_lines()
        count = 0
        for number, line in enumerate(self.text.splitlines(), 1):
            if line.strip() and number not in prose:
                count += 1
        return count

    def _docstring_lines(self) -> set[int]:
        found: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = docstring(node.body)
                if text is not None:
                    found.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
        return found

    def _comment_lines(self) -> set[int]:
        found = set()
        lines = io.StringIO(self.text)
        for token in tokenize.generate_tokens(lines.readline):
            comment = token.type == tokenize.COMMENT
            alone = token.line.lstrip().startswith("#")
            if comment and alone and not DIRECTIVE.match(token.string):
                found.add(token.start[0])
        return found

    def functions(self) -> Iterator[Function]:
        """Yield every function and method, the inner ones too."""
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node

    def names(self) -> Iterator[str]:
        """Yield the names that the module defines at its top level."""
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id


def docstring(body: list[ast.stmt]) -> ast.Expr | None:
    """Return the statement that is the docstring of a body, if it has one."""
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first
    return None


def sources(folder: Path) -> list[Source]:
    """Parse every Python file below a folder."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        found.append(Source(path, text, ast.parse(text)))
    return found


def nodes(tree: ast.AST) -> int:
    """Return the number of expressions and statements."""
    return sum(isinstance(node, (ast.expr, ast.stmt)) for node in ast.walk(tree))


def function_nodes(function: Function) -> int:
    """Return the nodes of a function's body without its docstring."""
    text = docstring(function.body)
    return sum(nodes(statement) for statement in function.body if statement is not text)


def branches(function: Function) -> int:
    """Return the cyclomatic complexity: one, and one more for every way to branch."""
    found = 1
    for node in ast.walk(function):
        if isinstance(node, BRANCHES):
            found += 1
        elif isinstance(node, ast.comprehension):
            found += 1 + len(node.ifs)
        elif isinstance(node, ast.BoolOp):
            found += len(node.values) - 1
    return found


def compares_with_text(node: ast.AST) -> bool:
    """Tell whether a node is a comparison one side of which is a string literal."""
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    return any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)


def any_annotations(function: Function) -> int:
    """Return the number of arguments and results that are annotated with `Any`."""
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    for rest in (given.vararg, given.kwarg):
        if rest is not None:
            arguments.append(rest)
    annotations = [argument.annotation for argument in arguments]
    annotations.append(function.returns)
    count = 0
    for annotation in annotations:
        if annotation is not None and ANY.search(ast.unparse(annotation)):
            count += 1
    return count


def twins(files: list[Source]) -> dict[str, list[str]]:
    """Return the names that several modules define, without case and underscores, and where.

    Args:
        files: The files of a package.

    Returns:
        `file:name` of every definition, by name.
    """
    found: dict[str, dict[Path, str]] = defaultdict(dict)
    for source in files:
        module = source.path.parent if source.path.parent.name == TABLES else source.path
        for name in source.names():
            key = name.strip("_").lower()
            if key not in SHARED_NAMES:
                found[key][module] = f"{module}:{name}"
    several = {}
    for key in sorted(found):
        if len(found[key]) > 1:
            several[key] = list(found[key].values())
    return several


def percentile(values: Iterable[int], share: float = 0.9) -> int:
    """Return the value that so many of all values lie below."""
    ordered = sorted(values)
    return ordered[int(share * len(ordered))]


def measure(folder: Path) -> Style:
    """Count the style of all Python files in a folder.

    Args:
        folder: The folder of a package.

    Returns:
        Its numbers.

    Raises:
        ValueError: If the folder holds no function.
    """
    files = sources(folder)
    functions: list[Function] = []
    lines = size = comparisons = 0
    for source in files:
        functions.extend(source.functions())
        lines += source.code_lines()
        size += nodes(source.tree)
        comparisons += sum(map(compares_with_text, ast.walk(source.tree)))
    if not functions:
        raise ValueError(f"Expected `folder` to hold Python functions, but found none in '{folder}'.")
    thousands = lines / 1000
    annotations = sum(map(any_annotations, functions))
    return Style(
        nodes_per_line=round(size / lines, 2),
        function_nodes=percentile(map(function_nodes, functions)),
        branches=percentile(map(branches, functions)),
        string_comparisons=round(comparisons / thousands, 1),
        any_annotations=round(annotations / thousands, 1),
        twins=len(twins(files)),
        longest_file=max(len(source.text.splitlines()) for source in files),
    )


def excess(found: Style, limits: Style) -> dict[str, str]:
    """Return the numbers that are above their limit, as sentences by name."""
    allowed = asdict(limits)
    above = {}
    for name, value in asdict(found).items():
        if value > allowed[name]:
            above[name] = f"{name} is {value}, above {allowed[name]}"
    return above


def dense_functions(folder: Path, count: int) -> list[str]:
    """Return the functions with the most nodes, as `nodes branches file:name`."""
    rows = []
    for source in sources(folder):
        file = source.path.relative_to(folder)
        for function in source.functions():
            size = function_nodes(function)
            paths = branches(function)
            rows.append((size, f"{size:5d} nodes, {paths:3d} branches  {file}:{function.name}"))
    rows.sort(reverse=True)
    return [text for _, text in rows[:count]]


def main() -> None:
    """Print the numbers; exit with 1 if one is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "lightning_gluon")
    parser.add_argument("--worst", type=int, default=0, help="print so many of the largest functions, and the twins")
    given = parser.parse_args()
    found = measure(given.folder)
    above = excess(found, LIMITS)
    limits = asdict(LIMITS)
    for name, value in asdict(found).items():
        verdict = "above" if name in above else ""
        print(f"{name:20} {value:8}  limit {limits[name]:4}  {verdict}")
    if given.worst:
        print(*dense_functions(given.folder, given.worst), sep="\n")
        for name, places in twins(sources(given.folder)).items():
            print(f"{name}: {', '.join(places)}")
    sys.exit(bool(above))


if __name__ == "__main__":
    main()
