"""Values of the wrong type, as jsonargparse tells of them."""

from __future__ import annotations

import pytest

from lightning_gluon.cli.given import Given
from lightning_gluon.cli.keys import Keys
from lightning_gluon.cli.values import wrong_value

UNION = """
  Does not validate against any of the Union subtypes
  Subtypes: [{types}]
  Errors:
    - {error}
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: {value}
"""


@pytest.mark.parametrize(
    ("types", "error", "value", "sentence"),
    [
        ("<class 'int'>, <class 'NoneType'>", "Expected a <class 'int'>", "abc", "one of: int, null; but got 'abc'."),
        ("typing.Literal['a', 'b']", "Expected a typing.Literal['a', 'b']", "c", "one of: 'a', 'b'; but got 'c'."),
        ("tuple[float, float]", "Expected a tuple with 2 elements", "[1]", "'[1]'. Expected a tuple with 2 elements."),
        (
            "list[a.b.Callback]",
            "Expected a dot import path string: X",
            "X",
            "list[Callback], but got 'X'. Give a class",
        ),
        (
            "<class 'a.b.Module'>",
            "Problem with given class_path 'x.Y':\n        No module named 'x'",
            "x.Y",
            "Module, but got 'x.Y'. There is no module 'x': install its package, or run in the folder that holds it.",
        ),
        (
            "<class 'a.b.Module'>",
            "Problem with given class_path 'x.Y':\n        No module named 'z'",
            "x.Y",
            "Importing x.Y failed, since there is no module 'z'. Install it.",
        ),
    ],
)
def test_unions(types: str, error: str, value: str, sentence: str) -> None:
    text = UNION.format(types=types, error=error, value=value)
    told = wrong_value("trainer.key", text, Keys(Given(), ["trainer.key"]))
    assert told.startswith("Expected `trainer.key` to be ")
    assert sentence in told


def test_the_argument_of_a_class_gets_its_whole_key() -> None:
    keys = Keys(Given({"model.init_args.width": "x"}), ["model"])
    text = "Problem with given class_path 'a.B':\n  Parser key \"width\":\n    Expected a <class 'int'>. Got value: x"
    assert wrong_value("model", text, keys) == "Expected `model.init_args.width` to be int, but got 'x'."


def test_other_texts_stay() -> None:
    assert wrong_value("config", "something\n else", Keys(Given(), [])) == "`config`: something else"
