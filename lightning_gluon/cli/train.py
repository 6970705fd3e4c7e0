"""The commands `lightning-gluon fit`, `validate`, `test` and `predict`."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gluon.cli.errors import one_line_errors, search_working_directory
from lightning_gluon.extras import require

__all__ = ["train"]


def train(arguments: Sequence[str]) -> None:
    """Run a Trainer. Before the first batch a mistake is one line; later errors keep their traceback.

    Args:
        arguments: Command-line arguments, the command first.

    Raises:
        SystemExit: If something is wrong before the first batch.
    """
    with one_line_errors():
        require("jsonargparse")
    from lightning_gluon.cli.first_batch import FirstBatch
    from lightning_gluon.cli.fit import CommandCLI

    search_working_directory()
    first = FirstBatch()
    with one_line_errors(lambda: first.seen):
        CommandCLI(list(arguments), [first])
