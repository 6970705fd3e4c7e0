"""The parser of `lightning-gluon fit` and its kin: a mistake is one line with a suggestion."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_gluon.cli.config_files import PARSER_MODE
from lightning_gluon.cli.given import Given
from lightning_gluon.cli.keys import Keys
from lightning_gluon.cli.mistakes import explain
from lightning_gluon.cli.recipes import resolve

__all__ = ["GluonParser"]


class GluonParser(LightningArgumentParser):
    """Lightning's parser, which reads YAML of bounded size and leaves the usage to `--help`.

    Example:
        >>> parser = GluonParser()
        >>> _ = parser.add_argument("--depth", type=int)
        >>> parser.parse_args(["--depth=3"]).depth
        3
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("parser_mode", PARSER_MODE)
        super().__init__(*args, **kwargs)
        self.given = Given()

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Find the recipes and read the files first, so that a mistake in one is said of that file.

        Args:
            args: Arguments; None takes the process's.
            *others: Further arguments of jsonargparse.
            **kwargs: Further arguments of jsonargparse.

        Returns:
            The configuration.
        """
        if args is None:
            args = sys.argv[1:]
        try:
            args = resolve(args)
            self.given = Given.read(args)
        except ValueError as error:
            self.error(str(error), error)
        for parser in self.commands().values():
            parser.given = self.given
        return super().parse_args(args, *others, **kwargs)

    def commands(self) -> dict[str, GluonParser]:
        """Return the parsers of the commands by name."""
        found: dict[str, GluonParser] = {}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found.update(action.choices)
        return found

    def options(self) -> list[str]:
        """Return every option, without those that stand for a whole section or print something else."""
        options = [option for option in self._option_string_actions if option.startswith("--")]
        return [option for option in options if not option.endswith((".help", "+", "--help", "--print_shtab"))]

    def _keys(self) -> list[str]:
        """Return every key of this parser and of its commands."""
        keys: dict[str, None] = {}  # in order, without repeats
        for parser in (self, *self.commands().values()):
            for option in parser.options():
                keys[option.removeprefix("--")] = None
        return list(keys)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with one line that names the key and the remedy.

        Args:
            message: Text of jsonargparse, of up to 20 lines.
            ex: Its cause.

        Raises:
            SystemExit: Always.
        """
        if not self.exit_on_error:  # a parser of one class's arguments, whose caller tries another type
            super().error(message, ex)
        sentence = explain(message, Keys(self.given, self._keys()))
        sys.stderr.write(f"lightning-gluon: error: {sentence}\n")
        raise SystemExit(2) from ex
