"""The README holds: its Python runs in order in one namespace, prints what it says, and its links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

import lightning_gluon

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
# A Python block, and the text block right behind it, if there is one: what the Python prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def test_snippets_run_and_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    blocks = list(BLOCK.finditer(TEXT))
    assert len(blocks) >= 4
    for block in blocks:
        line = TEXT[: block.start(1)].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # the padding makes a traceback point to the README's own line
            exec(compile("\n" * line + block[1], str(README), "exec"), namespace)
        assert printed.getvalue() == (block[2] or ""), f"README.md, line {line}"


@pytest.mark.usefixtures("tables")
def test_extending_page_runs() -> None:
    page = README.parent / "docs" / "extending.md"
    namespace: dict[str, object] = {"__name__": "extending"}
    blocks = list(BLOCK.finditer(page.read_text(encoding="utf-8")))
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block[1], str(page), "exec", dont_inherit=True), namespace)
    assert "gluon-eq" in lightning_gluon.METHODS


def test_snippets_for_other_trainers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = README.parent / "docs" / "elsewhere.md"
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "elsewhere"}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == 8
    for block in blocks:
        exec(compile(block[1], str(page), "exec", dont_inherit=True), namespace)
    (hydra,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    arguments = yaml.safe_load(hydra)
    assert pkgutil.resolve_name(arguments.pop("_target_"))(**arguments).active


def test_momentum_page_prints_what_it_says() -> None:
    page = README.parent / "docs" / "primers" / "momentum.md"
    blocks = list(BLOCK.finditer(page.read_text(encoding="utf-8")))
    assert blocks
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block[1], str(page), "exec", dont_inherit=True), {"__name__": "momentum"})
        assert printed.getvalue() == block[2]


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
    table = TEXT.split("## One frame, many methods")[1].split("\n## ")[0]
    listed = re.findall(
        r"`([a-z0-9-]+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    )
    assert sorted(listed) == sorted(lightning_gluon.METHODS)


def test_radii_in_the_role_table_are_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \|$", TEXT, re.MULTILINE)
    rules = lightning_gluon.METHODS["gluon"].rules
    assert {role: float(radius) for role, radius in rows} == {role: rule.radius for role, rule in rules.items()}


def test_conversion_table_is_computed() -> None:
    rows = re.findall(r"^\| (\d+) x (\d+) \| (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 3
    for m, n, cells in rows:
        rates = lightning_gluon.equivalent_learning_rates(0.02, (int(m), int(n)))
        expected = [rates["muon"], rates["scion"], rates["moonlight"], rates["update_rms"]]
        assert [float(cell) for cell in cells.split("|")] == pytest.approx(expected, rel=0.02)


def test_links_exist() -> None:
    assert [path for path in LINK.findall(TEXT) if not (README.parent / path).exists()] == []
