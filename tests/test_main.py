"""The command: help, version, unknown commands, closed pipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lightning_gluon
from lightning_gluon.__main__ import main


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    assert "lightning-gluon fit -c" in printed
    assert "then in the working directory" in printed
    with pytest.raises(SystemExit, match=r"Expected a command out of fit, validate, .* got 'fti'. Did you mean `fit`"):
        main(["fti"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"lightning-gluon {lightning_gluon.__version__}\n"


def test_help_and_version_import_no_command() -> None:
    code = """
import sys
from lightning_gluon.__main__ import main
main([]), main(["--version"])
print(sorted({"lightning", "jsonargparse", "timm", "transformers", "yaml"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_traceback_is_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^lightning-gluon: error: Expected os.mkdir to be a subclass"):
        main(["partition", "--model", "os.mkdir"])
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["partition", "--traceback", "--model", "os.mkdir"])
    assert "Traceback" in capsys.readouterr().err


def test_missing_jsonargparse_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit, match=r"pip install 'jsonargparse\[signatures\]"):
        main(["fit"])


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m lightning_gluon methods | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stderr == ""
