"""What to install where something is missing."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from lightning_gluon.extras import install_hint, require


def test_a_package_that_is_there_is_returned() -> None:
    assert require("json") is json


def test_a_missing_package_is_named_with_its_command() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"`no_such_package` to be installed.* pip install 'no_such_package'"):
        require("no_such_package.part")


def test_a_module_that_lacks_another_one_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "present_module.py").write_text("import absent_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'absent_module'$"):
        require("present_module")


def test_the_hint_names_what_there_is_on_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=2.12", "jsonargparse[signatures]>=4.51; extra == 'cli'", "scikit-learn; extra == 'vision'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    assert install_hint("jsonargparse") == "pip install 'jsonargparse[signatures]>=4.51'"
    assert install_hint("sklearn") == "pip install 'scikit-learn'"
    assert install_hint("wandb") == "pip install 'wandb'"


def test_a_checkout_that_is_not_installed_has_no_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert install_hint("timm") == "pip install 'timm'"


def test_no_message_names_a_package_that_is_not_on_the_index() -> None:
    package = Path(__file__).parents[1] / "lightning_gluon"
    assert [path.name for path in package.rglob("*.py") if "lightning-gluon[" in path.read_text()] == []
