"""What importing the package costs, which module may import which, and the names that are promised."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_gluon

PACKAGE = Path(lightning_gluon.__file__).parent
HEAVY = {"lightning", "pytorch_lightning", "timm", "transformers", "torchvision", "sklearn", "matplotlib", "peft"}

# The mathematics: these modules know the shape of a matrix, its norm and its gradients, and nothing of training.
COMPONENTS = {"views", "norms", "orthogonalize", "estimators"}
# The only places that may import Lightning when they are imported.
LIGHTNING = {"callbacks", "cli", "__main__"}

NAMES = ["Gluon", "METHODS", "callbacks", "configure_optimizers", "norms", "orthogonalize", "partition"]
NORMS = ["Spectral", "SpectralConv", "Sign", "RowNorm", "ColumnNorm", "RMSVector", "Euclidean", "Max"]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def top(path: Path) -> str:
    """The module or folder of the package that a file belongs to: `norms`, `partition`, `callbacks`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(body: list[ast.stmt], *, lazy: bool) -> list[ast.stmt]:
    """Every import statement that runs when the module is imported; with `lazy` those inside functions as well."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not lazy:
            continue
        elif not is_type_checking(node):
            for field in ("body", "orelse", "finalbody", "handlers"):
                inner = getattr(node, field, [])
                found += statements([s for h in inner for s in getattr(h, "body", [h])], lazy=lazy)
    return found


def imported(path: Path, *, lazy: bool = False) -> set[str]:
    """Absolute dotted names that a file imports, relative imports resolved."""
    names: set[str] = set()
    package = ("lightning_gluon", *path.relative_to(PACKAGE).parent.parts)
    for node in statements(ast.parse(path.read_text()).body, lazy=lazy):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path, *, lazy: bool = False) -> set[str]:
    """The package's own modules that a file imports: `{"norms", "views"}`."""
    return {parts[1] for name in imported(path, lazy=lazy) if (parts := name.split("."))[0] == "lightning_gluon"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light() -> None:
    code = "import sys, json, lightning_gluon; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    assert set(json.loads(run(code))).isdisjoint(HEAVY)


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


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_directions(path: Path) -> None:
    if top(path) in COMPONENTS:
        assert ours(path, lazy=True) <= COMPONENTS
    if top(path) not in LIGHTNING:
        assert ours(path).isdisjoint(LIGHTNING)
        assert {name.split(".")[0] for name in imported(path)}.isdisjoint({"lightning", "pytorch_lightning"})
    assert {name.split(".")[0] for name in imported(path)}.isdisjoint(HEAVY - {"lightning", "pytorch_lightning"})


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
