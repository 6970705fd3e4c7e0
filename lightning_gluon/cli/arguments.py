"""Arguments of the small commands: a mistake is one line."""

from __future__ import annotations

import argparse
import difflib
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import NoReturn

__all__ = ["Arguments", "print_json"]


class Arguments(argparse.ArgumentParser):
    """A parser that names a mistake in one line and leaves the usage to `--help`."""

    def parse_args(self, args: Sequence[str], namespace: Namespace | None = None) -> Namespace:  # type: ignore[override]
        """Say which option is unknown, rather than which one is missing for it.

        Args:
            args: Arguments.
            namespace: As in the parent.

        Returns:
            The values.
        """
        for argument in args:
            name = argument.partition("=")[0]
            if name.startswith("--"):
                self._check_option(name)
        return super().parse_args(args, namespace)

    def add_json(self) -> None:
        """Add the option that prints a table for programs."""
        self.add_argument("--json", action="store_true", help="print JSON instead of a table")

    def _check_option(self, name: str) -> None:
        options = list(self._options())
        for option in options:
            if option.startswith(name):  # argparse takes what an option begins with
                return
        hint = ""
        for near in difflib.get_close_matches(name, options, n=1):
            hint = f" (did you mean {near}?)"
        self.error(f"unknown option {name}{hint}")

    def _options(self) -> Iterator[str]:
        """Yield the options of this parser and of its commands."""
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._options()

    def error(self, message: str) -> NoReturn:
        """Exit with one line.

        Args:
            message: A sentence without its full stop.
        """
        self.exit(2, f"{self.prog}: error: {message}. See `{self.prog} --help`.\n")


def print_json(rows: object) -> None:
    """Print plain values as JSON.

    Args:
        rows: Plain values.

    Example:
        >>> print_json([{"lr": 0.02}])
        [
          {
            "lr": 0.02
          }
        ]
    """
    print(json.dumps(rows, indent=2, ensure_ascii=False))
