"""The keys that a command line knows, and the one that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_gluon.cli.given import CLASS_SECTIONS, Given

__all__ = ["Keys", "last"]

# Share of equal letters from which two dotted keys are near; their sections often agree already.
SIMILARITY = 0.7
# Number of keys that one sentence offers.
OFFERED = 3


@dataclass(frozen=True)
class Keys:
    """Keys around a mistake.

    Args:
        given: What the command line and its files give.
        known: Every key there is, without arguments of classes.

    Example:
        >>> Keys(Given(), ["trainer.max_epochs", "optimizer.lr"]).suggest("max_epochs")
        'Did you mean `trainer.max_epochs`?'
    """

    given: Given
    known: Sequence[str]

    def suggest(self, key: str, dashes: str = "") -> str:
        """Return the key that was probably meant, as a sentence, or the keys of its section.

        Args:
            key: A key that is none.
            dashes: How an option begins if the key was one.

        Returns:
            A sentence; where to look, if no key is near.
        """
        section = key.rpartition(".")[0]
        inside = self._of_section(section)
        offered = []
        near = self._near(key, inside)
        for other in near[:OFFERED]:
            offered.append(f"`{dashes}{other}`")
        if offered:
            choices = " or ".join(offered)
            return f"Did you mean {choices}?"
        if not inside:
            return "See `--help`."
        names = map(last, inside)
        listed = ", ".join(names)
        return f"Keys of `{section}`: {listed}."

    def _of_section(self, section: str) -> list[str]:
        """Return the keys of a section; a key without one stands in none."""
        if not section:
            return []
        start = f"{section}."
        return [key for key in self._all() if key == start + last(key)]

    def _all(self) -> list[str]:
        keys = list(self.known)
        for section in CLASS_SECTIONS:
            for name in self.given.parameters(f"{section}.init_args."):
                keys.append(f"{section}.{name}")
        return keys

    def _near(self, key: str, inside: Sequence[str]) -> list[str]:
        """Return near names of the same section, the same name in other sections, or near keys."""
        section, _, name = key.rpartition(".")
        names = map(last, inside)
        for near in difflib.get_close_matches(name, names, n=1):
            return [f"{section}.{near}"]
        moved = self.elsewhere(name)
        if moved or inside:
            return moved
        return difflib.get_close_matches(key, self._all(), n=1, cutoff=SIMILARITY)

    def elsewhere(self, name: str) -> list[str]:
        """Return the keys that end in a name.

        Args:
            name: Last part of a key.

        Returns:
            Dotted keys.
        """
        return [key for key in self._all() if last(key) == name]


def last(key: str) -> str:
    """Return the last part of a dotted key.

    Args:
        key: A key such as `trainer.max_epochs`.

    Returns:
        Its name inside its section.

    Example:
        >>> last("trainer.max_epochs")
        'max_epochs'
    """
    return key.rpartition(".")[2]
