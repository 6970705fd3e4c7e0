"""Exceptions as one line, and where they were raised."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_gluon.cli.errors import LONGEST, flat, one_line, one_line_errors, search_working_directory
from lightning_gluon.extras import require


def caught(function: object, *arguments: object) -> str:
    try:
        function(*arguments)  # type: ignore[operator]
    except Exception as error:
        return one_line(error)
    raise AssertionError("Expected an exception.")


def test_sentences_of_this_project_stand_alone() -> None:
    assert caught(require, "no_such_package").startswith("Expected `no_such_package` to be installed")


def test_errors_of_others_have_a_type_and_the_users_line() -> None:
    def divide() -> float:
        return 1 / 0

    assert (
        caught(divide) == f"ZeroDivisionError: division by zero (test_errors.py:{divide.__code__.co_firstlineno + 1})"
    )


def test_long_texts_are_cut() -> None:
    assert len(flat("word " * 1000)) == LONGEST
    assert flat("a\n  b") == "a b"


def test_the_cause_stays_and_a_run_that_began_keeps_its_exception() -> None:
    with pytest.raises(SystemExit, match=r"^lightning-gluon: error: KeyError: 'x'") as end, one_line_errors():
        raise KeyError("x")
    assert isinstance(end.value.__cause__, KeyError)
    with pytest.raises(KeyError), one_line_errors(lambda: True):
        raise KeyError("x")
    with pytest.raises(BrokenPipeError), one_line_errors():
        raise BrokenPipeError


def test_the_working_directory_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    search_working_directory()
    search_working_directory()
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1
