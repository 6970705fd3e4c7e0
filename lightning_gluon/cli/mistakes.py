"""One sentence for a mistake on the command line, out of jsonargparse's message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import TypeAlias

from lightning_gluon.cli.errors import flat
from lightning_gluon.cli.keys import Keys
from lightning_gluon.cli.values import wrong_value

__all__ = ["explain"]

# A message of one form, and what writes the sentence for it.
Found: TypeAlias = re.Match[str]
Writer: TypeAlias = Callable[[Found, Keys], str]

# Forms of messages, tried in this order.
FORMS: list[tuple[re.Pattern[str], Writer]] = []


def explain(message: str, keys: Keys) -> str:
    """Return one sentence for jsonargparse's message about a mistake.

    Args:
        message: Its text, of up to 20 lines.
        keys: What was given and what there is.

    Returns:
        One line. A text of an unknown form loses its line breaks only.

    Example:
        >>> from lightning_gluon.cli.given import Given
        >>> explain("unrecognized arguments: --max_epochs 3", Keys(Given(), ["trainer.max_epochs"]))
        'Unknown option `--max_epochs`. Did you mean `--trainer.max_epochs`?'
    """
    for pattern, write in FORMS:
        found = pattern.search(message)
        if found is not None:
            return write(found, keys)
    return flat(message)


def _form(pattern: str) -> Callable[[Writer], Writer]:
    """Register the writer of a form of messages."""

    def register(write: Writer) -> Writer:
        FORMS.append((re.compile(pattern, re.DOTALL), write))
        return write

    return register


@_form(r"unrecognized arguments: (.*)")
def _unrecognized(found: Found, keys: Keys) -> str:
    for word in found[1].split():
        option = word.partition("=")[0]
        if option.startswith("-"):
            hint = keys.suggest(option.lstrip("-"), dashes="--")
            return f"Unknown option `{option}`. {hint}"
    return f"Expected options such as `--trainer.max_epochs 3`, but got {found[1]!r}."


@_form(r"does not accept option '([^']+)'")
def _unknown_key(found: Found, keys: Keys) -> str:
    key = found[1]
    hint = keys.suggest(key)
    return f"Unknown key `{key}`. {hint}"


@_form(r"Option '([^']+)' is not accepted")
def _unknown_argument(found: Found, keys: Keys) -> str:
    """Find the class that was given an argument it does not take."""
    name = found[1]
    moved = ""
    for key in keys.elsewhere(name)[:1]:
        moved = f" There is `{key}`."
    for key in keys.given.find(name):
        owner = keys.given.owner(key)
        parameters = keys.given.parameters(key)
        if owner is None or name in parameters:
            continue
        hint = _hint(name, parameters)
        return f"Unknown key `{key}`: {owner} has no argument `{name}`. {hint}{moved}"
    return f"Unknown key `{name}`: its class has no such argument.{moved}"


def _hint(name: str, parameters: list[str]) -> str:
    near = difflib.get_close_matches(name, parameters, n=1)
    if near:
        return f"Did you mean `{near[0]}`?"
    listed = ", ".join(parameters) or "none"
    return f"Its arguments: {listed}."


@_form(r"argument (\S+): expected (?:one|at least one) argument")
def _no_value(found: Found, keys: Keys) -> str:
    return f"Expected a value after `{found[1]}`."


@_form(r"following arguments are required: (?:(?:fit|validate|test|predict)\.)?(\w+)")
def _required(found: Found, keys: Keys) -> str:
    name = found[1]
    key = keys.given.lacking(name)
    if key is None:
        return f"Missing `{name}`. Give it by `--{name} VALUE` or in a YAML file (`-c FILE`)."
    owner = keys.given.owner(key)
    option = key.replace(".init_args", "")
    return f"Missing `{key}`: {owner} needs it. Give it by `--{option} VALUE` or in a YAML file."


@_form(r'Parser key "optimizer".*Unable to load config')
def _no_section(found: Found, keys: Keys) -> str:
    return (
        "Expected a section: `--optimizer.method NAME --optimizer.lr NUMBER`, in YAML "
        "`optimizer: {method: NAME, lr: NUMBER}`."
    )


@_form(r'Parser key "(\w+)".*Unable to load config [\'"]([^\'"]+)')
def _no_file(found: Found, keys: Keys) -> str:
    section, value = found.groups()
    return f"Expected `{section}` to be a YAML file, or keys such as `--{section}.KEY VALUE`, but got {value!r}."


@_form(r'Parser key "([^"]+)":\s*(.*)')
def _explain_value(found: Found, keys: Keys) -> str:
    key, text = found.groups()
    return wrong_value(key, text, keys)
