"""README and documentation hold: their Python runs, prints what it says, and links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml
from torch import nn

import lightning_gluon
from lightning_gluon.__main__ import HELP
from lightning_gluon.methods import DEFAULT_METHOD
from lightning_gluon.tasks.sharding import shard

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
PAGES = sorted(DOCS.rglob("*.md"))
# A Python block, and the text block right behind it, if there is one: what the Python prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
WITH_CODE = [page for page in (README, *PAGES) if BLOCK.search(page.read_text(encoding="utf-8"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def page_text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture
def alone() -> Iterator[None]:
    """Be the only rank of a process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def given(page: Path) -> dict[str, object]:
    """Return what the snippets of a page take as given."""
    if page.name == "many-gpus.md":
        return {"lightning_gluon": lightning_gluon, "model": nn.Linear(4, 8), "dist": dist, "shard": shard}
    return {}


@pytest.mark.usefixtures("tables", "alone")
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_snippets_run_and_print_what_they_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace = {"__name__": page.stem, **given(page)}
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # the padding makes a traceback point to the page's own line
            exec(compile("\n" * line + block[1], str(page), "exec", dont_inherit=True), namespace)
        if block[2] is not None or page == README:  # transformers prints what it likes
            assert printed.getvalue() == (block[2] or ""), f"{name_of(page)}, line {line}"


def test_the_pages_with_code_are_found() -> None:
    names = {name_of(page) for page in WITH_CODE}
    assert {"README.md", "docs/start.md", "docs/elsewhere.md", "docs/extending.md", "docs/migrate.md"} <= names
    assert len(list(BLOCK.finditer(page_text("elsewhere.md")))) == 8


def test_snippet_for_hydra() -> None:
    (hydra,) = re.findall(r"^```yaml\n(.*?)^```", page_text("elsewhere.md"), re.MULTILINE | re.DOTALL)
    arguments = yaml.safe_load(hydra)
    assert pkgutil.resolve_name(arguments.pop("_target_"))(**arguments).active


def test_the_readme_is_short() -> None:
    assert len(TEXT.split()) <= 900


def test_first_snippet_trains(tmp_path: Path) -> None:
    namespace: dict = {"__name__": "readme"}
    exec(next(BLOCK.finditer(TEXT))[1], namespace)
    lightning, torch = namespace["lightning"], namespace["torch"]
    lightning.seed_everything(0, verbose=False)
    images = torch.randn(64, 1, 8, 8)
    batches = torch.utils.data.DataLoader(
        list(zip(images, images.flatten(1)[:, :10].argmax(1), strict=True)), batch_size=16
    )
    model = namespace["Classifier"]()

    def loss() -> float:
        with torch.no_grad():
            return sum(float(model.training_step(batch, 0)) for batch in batches)

    before = loss()
    trainer = lightning.Trainer(
        max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, batches)
    assert isinstance(trainer.optimizers[0], lightning_gluon.Gluon)
    assert loss() < 0.5 * before


def test_every_method_is_listed() -> None:
    table = page_text("choose.md").split("## All methods")[1]
    listed = re.findall(
        r"`([a-z0-9-]+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    )
    assert sorted(listed) == sorted(lightning_gluon.METHODS)


def test_radii_in_the_role_table_are_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \|$", page_text("routing.md"), re.MULTILINE)
    rules = lightning_gluon.METHODS["gluon"].rules
    assert {role: float(radius) for role, radius in rows} == {role: rule.radius for role, rule in rules.items()}


def test_conversion_table_is_computed() -> None:
    rows = re.findall(r"^\| (\d+) x (\d+) \| (.*) \|$", page_text("choose.md"), re.MULTILINE)
    assert len(rows) == 3
    for m, n, cells in rows:
        rates = lightning_gluon.equivalent_learning_rates(0.02, (int(m), int(n)))
        expected = [rates["muon"], rates["scion"], rates["moonlight"], rates["update_rms"]]
        assert [float(cell) for cell in cells.split("|")] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_links_exist(page: Path) -> None:
    made = {"docs/methods/index.md", "docs/recipes.md", "docs/architecture.md"}  # by docs/hooks.py
    targets = [(page.parent / path).resolve() for path in LINK.findall(page.read_text(encoding="utf-8"))]
    lost = [target for target in targets if not target.exists()]
    assert [target for target in lost if target.relative_to(ROOT).as_posix() not in made] == []


def test_every_page_is_in_the_navigation() -> None:
    """The primers are found by docs/hooks.py."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = [page for page in PAGES if page.parent.name != "primers"]
    assert [page.name for page in named if page.relative_to(DOCS).as_posix() not in text] == []


def test_every_method_says_what_is_ours() -> None:
    notes = yaml.safe_load(page_text("methods.yaml"))
    assert list(notes["methods"]) == list(lightning_gluon.METHODS)
    assert all(set(note) == {"paper", "ours"} for note in notes["methods"].values())
    used = {estimator for row in lightning_gluon.METHODS.values() for estimator in row.estimators}
    assert set(notes["estimators"]) == used


def test_supported_versions_are_those_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (Python|torch|lightning) \| ([\d.]+) \|", page_text("start.md"), re.MULTILINE))
    assert f'requires-python = ">={rows["Python"]}"' in project
    assert f'"torch>={rows["torch"]}"' in project and f'"lightning>={rows["lightning"]}"' in project
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    newest = re.findall(r"^\| Python \| [\d.]+ \| ([\d.]+) \|", page_text("start.md"), re.MULTILINE)
    assert [rows["Python"], *newest] == ci["test"]["strategy"]["matrix"]["python"]


@pytest.mark.parametrize("page", ["README.md", "recipes/README.md", "docs/start.md"])
def test_the_first_command_trains_by_the_default_method(page: str) -> None:
    wanted = f"lightning-gluon fit -c vit/base -c vit/tiny -c methods/{DEFAULT_METHOD}\n"
    assert wanted in (ROOT / page).read_text(encoding="utf-8")
    assert wanted in HELP
