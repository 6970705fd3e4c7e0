"""The wheel: its files, its metadata, and its commands in an empty folder of a fresh environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import lightning_gluon

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling")
NAME = f"lightning_gluon-{lightning_gluon.__version__}"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture
def metadata(dist: Path) -> Message:
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        return message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))


def test_the_wheel_holds_the_package_and_the_recipes(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lightning_gluon").rglob("*.py")}
    recipes = {f"lightning_gluon/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert modules | recipes | {"lightning_gluon/py.typed"} <= names
    assert {name.split("/")[0] for name in names} == {"lightning_gluon", f"{NAME}.dist-info"}


def test_the_source_distribution_builds_the_wheel(dist: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as source:
        names = {name.split("/")[1] for name in source.getnames()}
    assert {"hatch_build.py", "README.md", "LICENSE", "recipes", "lightning_gluon", "pyproject.toml"} <= names
    assert not {"tests", "benchmarks"} & names


def test_metadata(metadata: Message) -> None:
    assert metadata["Version"] == lightning_gluon.__version__
    assert metadata["Author"] == "lightning-gluon contributors"
    assert {"all", "datasets", "wandb", "cli", "vision"} <= set(metadata.get_all("Provides-Extra") or ())
    classifiers = metadata.get_all("Classifier") or ()
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)} <= set(classifiers)
    text = metadata.get_payload()
    assert isinstance(text, str) and text.startswith("# lightning-gluon")


def test_links_are_absolute_once_there_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from hatch_build import Metadata, absolute

    text = "[a](docs/a.md) ![b](docs/b.png) [c](https://c) [d](#d)"
    assert absolute(text, "") == text
    expected = "[a](https://r/blob/main/docs/a.md) ![b](https://r/raw/main/docs/b.png) [c](https://c) [d](#d)"
    assert absolute(text, "https://r") == expected
    project: dict = {}
    Metadata(str(ROOT), {"repository": "https://r/"}).update(project)
    assert project["urls"]["Repository"] == "https://r"
    assert "](docs/" not in project["readme"]["text"]


@pytest.mark.slow
def test_commands_in_an_empty_folder(dist: Path, tmp_path: Path) -> None:
    """Torch and its like are those of this environment, by a path file; the package is the wheel's."""
    venv.create(tmp_path / "env", with_pip=True)
    run = Fresh(tmp_path / "env" / "bin", tmp_path / "empty")
    packages = run("python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    shared = [path for path in sys.path if path.endswith("-packages")]
    Path(packages, "shared.pth").write_text("\n".join(shared))
    run("pip", "install", "-q", "--no-deps", str(dist / f"{NAME}-py3-none-any.whl"))

    place = run("python", "-c", "import lightning_gluon; print(lightning_gluon.__file__)")
    assert place.startswith(packages)
    assert run("lightning-gluon", "--version") == f"lightning-gluon {lightning_gluon.__version__}\n"
    assert "gluon-nesterov" in run("lightning-gluon", "methods")
    assert "patch_embed" in run("lightning-gluon", "partition", "-c", "vit/base", "-c", "vit/tiny")
    options = ("-c", "vit/base", "-c", "vit/tiny", "-c", "methods/gluon", "--trainer.max_steps", "3")
    run("lightning-gluon", "fit", *options)
    (checkpoint,) = run.folder.rglob("last.ckpt")
    run("lightning-gluon", "export", str(checkpoint), "model")
    assert (run.folder / "model" / "config.json").exists()


class Fresh:
    """Commands of an environment, run in an empty folder."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        folder.mkdir()

    def __call__(self, program: str, *arguments: str) -> str:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.programs / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
