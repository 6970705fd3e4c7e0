"""What importing the package costs, which module may import which, and the names that are promised."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_gluon

PACKAGE = Path(lightning_gluon.__file__).parent
LIBRARIES = {"lightning", "pytorch_lightning", "timm", "transformers", "torchvision", "sklearn", "matplotlib", "peft"}
HEAVY = LIBRARIES | {"rich"}  # rich is loaded when a table is shown

# From the ground up: a module imports what stands below it, and its own folder. Type-only and lazy imports count.
LAYERS = (
    ("valid", "roles", "registry", "extras"),
    ("configurations",),
    ("options", "ranks"),
    ("norms", "two_point"),
    ("estimators",),
    ("methods",),
    ("partition",),
    ("step",),
    ("optimizer", "smoothness"),
    ("radius", "replay"),
    ("callbacks",),
    ("configure",),
    ("callbacks.gluon_optimizer",),  # a callback by its place in the Trainer, which configures the optimizer
    ("tasks",),
    ("cli", "testing"),
    ("__main__",),
)
# Only these import Lightning.
LIGHTNING = ("replay", "callbacks", "tasks", "cli", "__main__")
# Export lists: nothing but names, so the folder's own modules and all others import from where things are defined.
EXPORTS = ("", "callbacks", "norms", "partition", "radius", "smoothness", "tasks")

KNOWN_EDGES: set[tuple[str, str]] = set()
KNOWN_EXPORTS: set[tuple[str, str]] = set()

NAMES = ["Gluon", "METHODS", "callbacks", "configure_optimizers", "norms", "orthogonalize", "partition"]
NORMS = ["Spectral", "SpectralConv", "Sign", "RowNorm", "ColumnNorm", "RMSVector", "Euclidean", "Max"]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """The name of a module inside the package: `norms.base`; of a folder's export list the folder's, `norms`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {dotted(path): path for path in modules()}


def imported(path: Path, *, at_import: bool = False) -> set[str]:
    """Absolute dotted names that a file imports anywhere; `at_import` leaves functions and type-only blocks out."""
    names: set[str] = set()
    for node in statements(ast.parse(path.read_text()), at_import=at_import):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def statements(tree: ast.AST, *, at_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        late = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        only_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (at_import and (late or only_types)):
            yield from statements(node, at_import=at_import)


def ours(path: Path) -> set[str]:
    """The package's own modules that a file imports, by their names inside the package."""
    found = set()
    for name in imported(path):
        first, _, rest = name.partition(".")
        if first == "lightning_gluon":
            found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found


def layer(module: str) -> int:
    """The number of a module's layer, from the ground up; the longest name that begins it counts."""
    heights = {name: height for height, names in enumerate(LAYERS) for name in names}
    parts = module.split(".")
    candidates = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    known = [heights[name] for name in candidates if name in heights]
    assert known, f"Say in LAYERS where `{module}` stands."
    return known[0]


def edges() -> set[tuple[str, str]]:
    """Who imports whom; the export list of the whole package stands above everything and is left out."""
    return {(one, other) for one, path in MODULES.items() if one for other in ours(path) if other != one}


def is_allowed(one: str, other: str) -> bool:
    same_folder = one.partition(".")[0] == other.partition(".")[0]
    return layer(other) < layer(one) or (same_folder and layer(other) == layer(one)) or one in EXPORTS


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light() -> None:
    code = "import sys, json, lightning_gluon; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    assert set(json.loads(run(code))).isdisjoint(HEAVY)


def test_import_loads_few_modules() -> None:
    code = "import sys, lightning_gluon; print(sum(name.startswith('lightning_gluon') for name in sys.modules))"
    assert int(run(code)) <= 80


def test_names_are_there_on_first_use() -> None:
    code = """
import lightning_gluon
for name in lightning_gluon.__all__:
    before = lightning_gluon.partition  # the name of a folder as well: no import may take it
    assert getattr(lightning_gluon, name) is not None and lightning_gluon.partition is before
assert set(lightning_gluon.__all__) <= set(dir(lightning_gluon))
print(lightning_gluon.partition.__module__)
"""
    assert run(code).strip() == "lightning_gluon.partition.build"


def test_core_runs_without_lightning() -> None:
    code = """
import sys
import torch, lightning_gluon
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
optimizer = lightning_gluon.configure_optimizers(model, method="gluon", lr=0.1)
model(torch.ones(1, 4)).sum().backward()
optimizer.step()
print(sorted(m for m in sys.modules if m in {"lightning", "pytorch_lightning", "timm", "transformers"}))
"""
    assert run(code).strip() == "[]"


def test_no_arrow_goes_up() -> None:
    assert {edge for edge in edges() if edge[1] and not is_allowed(*edge)} == KNOWN_EDGES


def test_nobody_goes_in_circles() -> None:
    below: dict[str, set[str]] = {name: set() for name in MODULES}
    for one, other in edges():
        below[one].add(other)
    while leaves := [name for name, others in below.items() if not others]:
        for leaf in leaves:
            del below[leaf]
        for others in below.values():
            others.difference_update(leaves)
    assert not below, f"circles through {sorted(below)}"


def test_names_come_from_where_they_are_defined() -> None:
    """Not from an export list, which imports all of its folder: only the public names of users go through one."""
    public = ("__main__", "cli", "testing")
    asked = {edge for edge in edges() if edge[1] in EXPORTS and edge[0] not in EXPORTS}
    assert {edge for edge in asked if edge[0].partition(".")[0] not in public} == KNOWN_EXPORTS


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(LIGHTNING)])
def test_the_core_does_not_import_lightning(name: str) -> None:
    roots = {module.partition(".")[0] for module in imported(MODULES[name])}
    assert roots.isdisjoint({"lightning", "pytorch_lightning"})


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_are_imported_where_they_are_used(name: str) -> None:
    roots = {module.partition(".")[0] for module in imported(MODULES[name], at_import=True)}
    assert roots.isdisjoint(LIBRARIES - {"lightning", "pytorch_lightning"})


@pytest.mark.parametrize("name", NAMES)
def test_public_names(name: str) -> None:
    assert hasattr(lightning_gluon, name)
    assert name in lightning_gluon.__all__
    assert name in dir(lightning_gluon)


@pytest.mark.parametrize("name", NORMS)
def test_norm_names(name: str) -> None:
    norm = getattr(lightning_gluon.norms, name)()
    assert all(callable(getattr(norm, part)) for part in ("norm", "dual_norm", "lmo"))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        lightning_gluon.no_such_name  # noqa: B018
