"""The recipes of the package: found by name, after files on disk; listed, shown, copied."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_gluon.__main__ import main
from lightning_gluon.cli import recipes
from lightning_gluon.cli.recipes import find_recipe, recipe_names, resolve


def test_names_become_files() -> None:
    arguments = ["fit", "-c", "vit/tiny", "--config=methods/gluon", "--trainer.max_steps", "vit/base"]
    resolved = resolve(arguments)
    assert [Path(part).name for part in resolved] == [
        "fit",
        "-c",
        "tiny.yaml",
        "gluon.yaml",
        "--trainer.max_steps",
        "base",
    ]
    assert Path(resolved[2]).is_file()
    assert resolved[3].startswith("--config=")
    assert resolve(["fit", "-c"]) == ["fit", "-c"]
    assert resolve(["-c", "{trainer: {max_steps: 1}}"]) == ["-c", "{trainer: {max_steps: 1}}"]


def test_a_file_on_disk_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit" / "tiny").mkdir(parents=True)
    assert Path(resolve(["-c", "vit/tiny"])[1]).is_absolute()  # a folder is no configuration
    (tmp_path / "recipes" / "vit").mkdir(parents=True)
    (tmp_path / "recipes" / "vit" / "tiny.yaml").write_text("{}")
    assert resolve(["-c", "recipes/vit/tiny.yaml"]) == ["-c", "recipes/vit/tiny.yaml"]


def test_an_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes" / "vit").mkdir(parents=True)
    inside = tmp_path / "recipes" / "vit" / "other.yaml"
    inside.write_text("# One.\n")
    monkeypatch.setattr(recipes, "PACKAGE", tmp_path)
    assert recipe_names() == ["vit/other"]
    assert find_recipe("vit/other") == inside


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "-c", "vit/tinyy"], r"a file or a recipe, but got 'vit/tinyy'. Did you mean 'vit/tiny'\?"),
        (["recipes", "show", "vit/tinyy"], r"name of a recipe, but got 'vit/tinyy'. Did you mean 'vit/tiny'\?"),
        (["recipes", "show", "zzz"], r"`lightning-gluon recipes list` prints them"),
        (["recipes", "show", "../pyproject"], r"name of a recipe"),
        (["recipes"], r"the following arguments are required"),
    ],
)
def test_unknown_names(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    text = f"{end.value} {capsys.readouterr().err}"
    assert text.count("\n") <= 1
    assert re.search(message, text)


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", "list"])
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in recipe_names())
    assert "Mamba-130M (129,135,360 parameters)" in listed
    main(["recipes", "show", "methods/gluon"])
    assert capsys.readouterr().out == Path("recipes/methods/gluon.yaml").read_text()


def test_copies_do_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", "copy", "vit/tiny", str(tmp_path)])
    copied = tmp_path / "vit" / "tiny.yaml"
    assert capsys.readouterr().out == f"{copied}\n"
    assert copied.read_text() == Path("recipes/vit/tiny.yaml").read_text()
    copied.write_text("mine")
    with pytest.raises(SystemExit, match=r"a folder without '.*vit/tiny.yaml', but it exists"):
        main(["recipes", "copy", "vit", str(tmp_path)])
    assert [file.name for file in copied.parent.iterdir()] == ["tiny.yaml"]
    assert copied.read_text() == "mine"
    main(["recipes", "copy", "vit", str(tmp_path / "other")])
    assert len(list((tmp_path / "other" / "vit").iterdir())) == len([n for n in recipe_names() if n.startswith("vit/")])
