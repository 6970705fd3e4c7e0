"""Style numbers of the package against their limits, and how they are counted."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.style import LIMITS, Source, any_annotations, branches, excess, function_nodes, measure, twins

TEXT = '''"""Module."""

# A comment.
def shout(word: Any, *, loud: bool = True) -> dict[str, Any]:  # inline
    """Doc.

    More.
    """
    if word == "quiet" and not loud:
        return {}
    return {letter: 1 for letter in word if letter}


_SHOUT = 1  # a twin of the function
'''


def source(text: str, name: str = "one.py") -> Source:
    return Source(Path(name), text, ast.parse(text))


def test_the_package_is_within_the_limits() -> None:
    assert not excess(measure(Path("lightning_gluon")), LIMITS)


def test_counts_by_hand() -> None:
    one = source(TEXT)
    (function,) = one.functions()
    assert one.code_lines() == 5  # def, if, return, return, assignment
    assert any_annotations(function) == 2
    assert branches(function) == 1 + 1 + 1 + 2  # if, and, comprehension with a condition
    # if and == word "quiet" not loud | return {} | return {comprehension} letter 1 letter word letter
    assert function_nodes(function) == 7 + 2 + 7
    assert list(one.names()) == ["shout", "_SHOUT"]


def test_twins_stand_in_two_modules() -> None:
    one, two = source(TEXT), source("class Shout: ...\n__all__ = []", "two.py")
    assert twins([one]) == {}
    assert twins([one, two]) == {"shout": ["one.py:_SHOUT", "two.py:Shout"]}
    tables = [source("ROWS = {}", "known/torch.py"), source("ROWS = {}", "known/timm.py")]
    assert twins(tables) == {}, "the same table of two libraries"
    assert twins([*tables, source("ROWS = {}")]) == {"rows": ["known:ROWS", "one.py:ROWS"]}


def test_a_folder_without_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected `folder` to hold Python functions"):
        measure(tmp_path)
