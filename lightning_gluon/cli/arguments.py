"""Arguments of the small commands: a mistake is one line."""

from __future__ import annotations

import argparse
import difflib
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["Arguments"]


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

    def _check_option(self, name: str) -> None:
        options = list(self._option_string_actions)
        for option in options:
            if option.startswith(name):  # argparse takes what an option begins with
                return
        hint = ""
        for near in difflib.get_close_matches(name, options, n=1):
            hint = f" (did you mean {near}?)"
        self.error(f"unknown option {name}{hint}")

    def error(self, message: str) -> NoReturn:
        """Exit with one line.

        Args:
            message: A sentence without its full stop.
        """
        self.exit(2, f"{self.prog}: error: {message}. See `{self.prog} --help`.\n")
