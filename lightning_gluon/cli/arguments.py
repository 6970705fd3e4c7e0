"""Arguments of the small commands: a mistake is one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["Arguments"]


class Arguments(argparse.ArgumentParser):
    """A parser that says what is wrong in one line and leaves the usage to `--help`."""

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        """Say which option is unknown, rather than which one is missing for it.

        Args:
            args: Arguments.
            namespace: As in the parent.

        Returns:
            The values.
        """
        options = list(self._option_string_actions)
        for argument in args:
            name = argument.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in options):
                near = difflib.get_close_matches(name, options, n=1)
                self.error(f"unknown option {name}" + (f" (did you mean {near[0]}?)" if near else ""))
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with one line.

        Args:
            message: A sentence without its full stop.
        """
        self.exit(2, f"{self.prog}: error: {message}. See `{self.prog} --help`.\n")
