"""One sentence for a mistake in keys or values, out of what jsonargparse says of it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_gluon.cli.errors import flat
from lightning_gluon.cli.given import SECTIONS, Given

__all__ = ["Context", "explain"]

_CLASS = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>")
_LITERAL = re.compile(r"typing\.Literal\[([^]]*)\]")
_MODULE = re.compile(r"\b(?!typing\.)(?:\w+\.)+(?=[A-Z]\w+)")
_TYPE_ERROR = re.compile(r"^- Expected a (?:<class|typing\.|path)")


@dataclass(frozen=True)
class Context:
    """Keys around a mistake.

    Args:
        given: What the command line and its files give.
        known: Every key there is, without arguments of classes.
    """

    given: Given
    known: Sequence[str]

    def suggest(self, key: str, dashes: str = "") -> str:
        """Return the key that was probably meant, as a sentence, or the keys of its section.

        Args:
            key: A key that is none.
            dashes: How an option begins where the key was one.

        Returns:
            A sentence after a blank; nothing if no key is near.
        """
        section, _, name = key.rpartition(".")
        known = [*self.known, *self._of_classes()]
        inside = [other.rpartition(".")[2] for other in known if section and other.rpartition(".")[0] == section]
        near = [f"{section}.{other}" for other in difflib.get_close_matches(name, inside, n=1)]
        near = near or [other for other in known if other.rpartition(".")[2] == name]
        if not near and not inside:  # the section is none either
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
        if near:
            return f" Did you mean {' or '.join(f'`{dashes}{other}`' for other in near[:3])}?"
        return f" Keys of `{section}`: {', '.join(inside)}." if inside else ""

    def _of_classes(self) -> list[str]:
        return [f"{section}.{name}" for section in SECTIONS for name in self.given.parameters(f"{section}.init_args.")]


def explain(message: str, context: Context) -> str:
    """Return one sentence for what jsonargparse says of a mistake.

    Args:
        message: Its text, of up to 20 lines.
        context: What was given and what there is.

    Returns:
        One line. A text of an unknown form loses its line breaks only.

    Example:
        >>> explain("unrecognized arguments: --max_epochs 3", Context(Given(), ["trainer.max_epochs"]))
        'Unknown option `--max_epochs`. Did you mean `--trainer.max_epochs`?'
    """
    for pattern, write in _FORMS:
        found = pattern.search(message)
        if found is not None:
            return write(found, context)
    return flat(message)


def _unrecognized(found: re.Match[str], context: Context) -> str:
    option = next((word for word in found[1].split() if word.startswith("-")), None)
    if option is None:
        return f"Expected options such as `--trainer.max_epochs 3`, but got {found[1]!r}."
    option = option.partition("=")[0]
    key = option.lstrip("-")
    return f"Unknown option `{option}`.{context.suggest(key, dashes='--') or ' See `--help`.'}"


def _unknown_key(found: re.Match[str], context: Context) -> str:
    return f"Unknown key `{found[1]}`.{context.suggest(found[1]) or ' See `--help`.'}"


def _unknown_argument(found: re.Match[str], context: Context) -> str:
    """Find which class was given an argument that it does not take."""
    name, given = found[1], context.given
    for key in given.find(name):
        parameters = given.parameters(key)
        if given.owner(key) is None or name in parameters:
            continue
        near = difflib.get_close_matches(name, parameters, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Its arguments: {', '.join(parameters) or 'none'}."
        hint += _elsewhere(name, context)
        return f"Unknown key `{key}`: {given.owner(key)} has no argument `{name}`. {hint}"
    return f"Unknown key `{name}`: its class has no such argument.{_elsewhere(name, context)}"


def _elsewhere(name: str, context: Context) -> str:
    """Name the sections that have the key which a class does not have."""
    keys = [key for key in context.known if key.rpartition(".")[2] == name]
    return f" There is `{keys[0]}`." if keys else ""


def _required(found: re.Match[str], context: Context) -> str:
    name = found[1].partition(",")[0].strip()
    key = context.given.lacking(name)
    if key is None:
        return f"Missing `{name}`. Give it by `--{name} VALUE` or in a YAML file (`-c FILE`)."
    option = key.replace(".init_args", "")
    return f"Missing `{key}`: {context.given.owner(key)} needs it. Give it by `--{option} VALUE` or in a YAML file."


def _no_section(found: re.Match[str], context: Context) -> str:
    return (
        "Expected a section: `--optimizer.method NAME --optimizer.lr NUMBER`, in YAML "
        "`optimizer: {method: NAME, lr: NUMBER}`."
    )


def _no_file(found: re.Match[str], context: Context) -> str:
    section, value = found.groups()
    return f"Expected `{section}` to be a YAML file, or keys such as `--{section}.KEY VALUE`, but got {value!r}."


def _wrong_value(found: re.Match[str], context: Context) -> str:
    """Name the key, what it may be, what it got, and the reason of the one type that was meant."""
    key, text = found[1], found[2]
    inner = re.search(r'Parser key "([^"]+)":\s*(.*)', text, re.DOTALL)
    if inner is not None:  # the argument of a class, inside the section of the class
        return _wrong_value(inner, context)
    if "." not in key and key not in context.known:  # the argument of a class
        key = next(iter(context.given.find(key)), key)
    types = re.search(r"Subtypes: \[(.*)\]$", text, re.MULTILINE) or re.search(r"Expected an? (.*?)\. Got", text)
    value = re.search(r"(?:Given|Got) value: (?:NestedArg\(.*val=')?(.*?)(?:'\))?$", text, re.MULTILINE)
    if types is None or value is None:
        return f"`{key}`: {flat(text)}"
    wanted = f"one of: {_plain(types[1])};" if "," in types[1] else f"{_plain(types[1])},"
    return f"Expected `{key}` to be {wanted} but got {flat(value[1])!r}.{_reason(text)}"


def _plain(types: str) -> str:
    """Write types as people do: `int, null`."""
    text = _LITERAL.sub(r"\1", _MODULE.sub("", _CLASS.sub(r"\1", types)))
    return text.replace("NoneType", "null").replace("typing.", "")


def _reason(text: str) -> str:
    """Return why a class path was not accepted; nothing for plain values."""
    missing = re.search(r"given class_path '([^']+)':\s+No module named '([^']+)'", text)
    if missing is not None:
        path, module = missing.groups()
        if path.partition(".")[0] == module.partition(".")[0]:
            return f" There is no module {module!r}: install its package, or run in the folder that holds it."
        return f" Importing {path} failed, since there is no module {module!r}. Install it."
    if "Expected a dot import path string" in text:
        return " Give a class path such as package.module.Class."
    if "not correspond to a subclass" in text or "Not a valid subclass" in text:
        return " It is no subclass of that."
    reasons = [line.strip() for line in text.partition("Errors:")[2].splitlines()]
    told = [line for line in reasons if line and not _TYPE_ERROR.match(line) and not line.startswith("Given value")]
    return f" {flat(' '.join(told).removeprefix('- '))}." if told else ""


def _no_value(found: re.Match[str], context: Context) -> str:
    return f"Expected a value after `{found[1]}`."


_FORMS: list[tuple[re.Pattern[str], Callable[[re.Match[str], Context], str]]] = [
    (re.compile(r"unrecognized arguments: (.*)"), _unrecognized),
    (re.compile(r"does not accept option '([^']+)'"), _unknown_key),
    (re.compile(r"Option '([^']+)' is not accepted"), _unknown_argument),
    (re.compile(r"argument (\S+): expected (?:one|at least one) argument"), _no_value),
    (re.compile(r"following arguments are required: (?:(?:fit|validate|test|predict)\.)?(.*)"), _required),
    (re.compile(r'Parser key "optimizer".*Unable to load config', re.DOTALL), _no_section),
    (re.compile(r'Parser key "(\w+)".*Unable to load config [\'"]([^\'"]+)', re.DOTALL), _no_file),
    (re.compile(r'Parser key "([^"]+)":\s*(.*)', re.DOTALL), _wrong_value),
]
