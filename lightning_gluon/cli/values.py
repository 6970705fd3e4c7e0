"""One sentence for a value of the wrong type, out of jsonargparse's message."""

from __future__ import annotations

import re

from lightning_gluon.cli.errors import flat
from lightning_gluon.cli.keys import Keys

__all__ = ["wrong_value"]

INNER_ERROR = re.compile(r'Parser key "([^"]+)":\s*(.*)', re.DOTALL)
TYPES = re.compile(r"Subtypes: \[(.*)\]$|Expected an? (.*?)\. Got", re.MULTILINE)
GIVEN_VALUE = re.compile(r"(?:Given|Got) value: (?:NestedArg\(.*val=')?(.*?)(?:'\))?$", re.MULTILINE)
NO_MODULE = re.compile(r"given class_path '([^']+)':\s+No module named '([^']+)'")
NO_SUBCLASS = re.compile(r"not correspond to a subclass|Not a valid subclass")
NO_PATH = re.compile(r"Expected a dot import path string")
PLAIN_TYPE = re.compile(r"^- Expected a (?:<class|typing\.|path)|^Given value")

# How types are written by Python, and how people write them.
SPELLINGS = (
    (r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1"),
    (r"\b(?!typing\.)(?:\w+\.)+(?=[A-Z]\w+)", ""),
    (r"typing\.Literal\[([^]]*)\]", r"\1"),
    (r"NoneType", "null"),
    (r"typing\.", ""),
)


def wrong_value(key: str, text: str, keys: Keys) -> str:
    """Return a sentence with the key, what it may be, what it got, and why a class path was not accepted.

    Args:
        key: The key, or the name of an argument of a class.
        text: What jsonargparse says of its value.
        keys: What was given and what there is.

    Returns:
        One line.

    Example:
        >>> from lightning_gluon.cli.given import Given
        >>> wrong_value("seed", "Expected a <class 'int'>. Got value: x", Keys(Given(), ["seed"]))
        "Expected `seed` to be int, but got 'x'."
    """
    inner = INNER_ERROR.search(text)
    if inner is not None:  # the argument of a class, inside the section of the class
        return wrong_value(inner[1], inner[2], keys)
    key = _full_key(key, keys)
    types = TYPES.search(text)
    value = GIVEN_VALUE.search(text)
    if types is None or value is None:
        return f"`{key}`: {flat(text)}"
    wanted = _spell(types[1] or types[2])
    if "," in wanted:
        wanted = f"one of: {wanted};"
    else:
        wanted = f"{wanted},"
    got = flat(value[1])
    reason = _reason(text)
    return f"Expected `{key}` to be {wanted} but got {got!r}.{reason}"


def _full_key(key: str, keys: Keys) -> str:
    """Return the dotted key of an argument that jsonargparse calls by its name alone."""
    given = keys.given.find(key)
    if key in keys.known or not given:
        return key
    return given[0]


def _spell(types: str) -> str:
    """Write types as people do: `int, null`."""
    for pattern, spelling in SPELLINGS:
        types = re.sub(pattern, spelling, types)
    return types


def _reason(text: str) -> str:
    """Return why a class path was not accepted; nothing for plain values."""
    missing = NO_MODULE.search(text)
    if missing is not None:
        return _no_module(missing[1], missing[2])
    if NO_PATH.search(text):
        return " Give a class path such as package.module.Class."
    if NO_SUBCLASS.search(text):
        return " It is no subclass of that."
    return _told(text)


def _told(text: str) -> str:
    """Return the text without the types that it expected."""
    told = []
    errors = text.partition("Errors:")[2]
    for line in errors.splitlines():
        line = line.strip()
        if line and not PLAIN_TYPE.match(line):
            told.append(line.removeprefix("- "))
    if not told:
        return ""
    sentence = flat(" ".join(told))
    return f" {sentence}."


def _no_module(path: str, module: str) -> str:
    package = path.partition(".")[0]
    if package == module.partition(".")[0]:
        return f" There is no module {module!r}: install its package, or run in the folder that holds it."
    return f" Importing {path} failed, since there is no module {module!r}. Install it."
