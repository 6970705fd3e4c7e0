"""YAML files of the command line: looked at before they are parsed, and refused if they would grow without end."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from jsonargparse import get_loader, set_loader

__all__ = ["PARSER_MODE", "check_files", "config_files", "load_yaml"]

# Name under which jsonargparse finds `load_yaml`.
PARSER_MODE = "yaml_of_bounded_size"

# Largest configuration. The largest recipe has about 60 values in 2 kB.
LARGEST_TEXT = 1_000_000
LARGEST_VALUES = 100_000

# Characters of a value in a sentence.
SHORT = 60

# Options that name a file.
CONFIG_FLAGS = ("-c", "--config")

# Sections that hold keys; `model` and `data` may also be a class path.
SECTIONS = ("trainer", "optimizer")


def load_yaml(text: str) -> object:
    """Load YAML as jsonargparse does, unless it is larger than a configuration is.

    Args:
        text: YAML.

    Returns:
        Plain values.

    Raises:
        ValueError: If the text is too long, its aliases expand to too many values, or one of them contains itself.

    Example:
        >>> load_yaml("{a: &x [1, 2], b: *x}")
        {'a': [1, 2], 'b': [1, 2]}
    """
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"Expected YAML of at most {LARGEST_TEXT:,} characters, but got {len(text):,}.")
    if "*" in text:  # only aliases make YAML larger than its text
        _check_aliases(text)
    return get_loader("yaml")(text)


set_loader(PARSER_MODE, load_yaml, (yaml.YAMLError,))


def _check_aliases(text: str) -> None:
    """Count the values that a text stands for, alias by alias, without building them."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    expansion = Expansion()
    try:
        for event in yaml.parse(text, Loader=loader):
            expansion.read(event)
    except yaml.YAMLError:  # the loader says so
        return


@dataclass
class Expansion:
    """A count of the values that the events of a YAML stand for.

    Args:
        sizes: Values below each anchor.
        anchors: Anchors of the lists and mappings that are open, None without one.
        counts: Values in each of them so far.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    anchors: list[str | None] = field(default_factory=lambda: [None])
    counts: list[int] = field(default_factory=lambda: [0])

    def read(self, event: yaml.Event) -> None:
        """Count an event.

        Args:
            event: Of the parser.
        """
        if isinstance(event, yaml.CollectionStartEvent):
            self.anchors.append(event.anchor)
            self.counts.append(1)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._add(self.anchors.pop(), self.counts.pop())
        elif isinstance(event, yaml.AliasEvent):
            self._check_open(event.anchor)
            self._add(None, self.sizes.get(event.anchor, 1))
        elif isinstance(event, yaml.ScalarEvent):
            self._add(event.anchor, 1)

    def _check_open(self, anchor: str) -> None:
        if anchor in self.anchors:
            raise ValueError(f"Expected YAML without endless values, but `&{anchor}` contains itself.")

    def _add(self, anchor: str | None, size: int) -> None:
        self.counts[-1] += size
        if anchor is not None:
            self.sizes[anchor] = size
        if self.counts[-1] > LARGEST_VALUES:
            raise ValueError(
                f"Expected YAML of at most {LARGEST_VALUES:,} values, but its aliases expand to more. Write the values "
                "that are needed instead of aliases of aliases."
            )


def config_files(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the configuration files that arguments name: `-c FILE`, `--config FILE`, `--config=FILE`.

    Args:
        arguments: Arguments of the command line.

    Yields:
        Names of files.

    Example:
        >>> list(config_files(["fit", "-c", "a.yaml", "--config=b.yaml"]))
        ['a.yaml', 'b.yaml']
    """
    for _, _, name in config_positions(arguments):
        yield name


def config_positions(arguments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield where arguments name configuration files.

    Args:
        arguments: Arguments of the command line.

    Yields:
        Position of an argument, the part of it before the name, and the name.

    Example:
        >>> list(config_positions(["fit", "-c", "a.yaml", "--config=b.yaml"]))
        [(2, '', 'a.yaml'), (3, '--config=', 'b.yaml')]
    """
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in CONFIG_FLAGS:
            continue
        if equals:
            yield position, f"{option}=", value
        elif position + 1 < len(arguments):
            yield position + 1, "", arguments[position + 1]


def check_files(arguments: Sequence[str]) -> Iterator[dict[str, object]]:
    """Read the configuration files that arguments name, and say in one sentence which one is none.

    What can be read only once, such as a pipe, and what is not local is left to jsonargparse.

    Args:
        arguments: Arguments of the command line.

    Yields:
        The content of a file.

    Raises:
        ValueError: If one is no file, no YAML, or holds no sections.
    """
    for name in config_files(arguments):
        if name == "-" or "://" in name or name.lstrip().startswith("{"):
            continue
        path = Path(name)
        kind = _file_kind(path)
        if stat.S_ISFIFO(kind):
            continue
        if not stat.S_ISREG(kind):
            raise ValueError(f"Expected `--config` to be a file, but '{name}' is none.")
        yield _sections(name, _load(path))


def _file_kind(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        folder = path.parent
        hint = ""
        others = []
        for other in folder.glob("*"):
            others.append(other.name)
        for near in difflib.get_close_matches(path.name, others, n=1):
            hint = f" Did you mean '{folder / near}'?"
        raise ValueError(f"Expected `--config` to be a file, but there is no '{path}'.{hint}") from None


def _load(path: Path) -> object:
    if path.stat().st_size > LARGEST_TEXT:
        raise ValueError(f"Expected '{path}' to be YAML of at most {LARGEST_TEXT:,} bytes, but it is larger.")
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = ""
        if mark is not None:
            place = f", line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"Expected '{path}' to be YAML, but it is not{place}: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"Expected '{path}' to be YAML, but it is not text of that kind.") from error
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


def _sections(name: str, content: object) -> dict[str, object]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(
            f"Expected '{name}' to hold sections such as `trainer:` and `model:`, but it holds {_short(content)}."
        )
    for section in SECTIONS:
        value = content.get(section)
        if section in content and not isinstance(value, dict | str):
            raise ValueError(f"Expected the section `{section}` of '{name}' to hold keys, but it is {_short(value)}.")
    return content


def _short(value: object) -> str:
    text = repr(value)
    if len(text) <= SHORT:
        return text
    return text[: SHORT - 3] + "..."
