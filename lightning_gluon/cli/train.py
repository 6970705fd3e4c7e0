"""The commands `lightning-gluon fit`, `validate`, `test` and `predict`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from lightning_gluon.cli.errors import one_line_errors, search_working_directory
from lightning_gluon.extras import require

__all__ = ["quiet_others", "train"]

# Deprecations between Lightning, torch and jsonargparse, which nobody who trains can act on.
DEPRECATED = (
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*LeafSpec.* is deprecated.*",
)
ADVERTISEMENTS = ("litlogger", "LitLogger", "litmodels")


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
    quiet_others()
    first = FirstBatch()
    with one_line_errors(lambda: first.seen):
        CommandCLI(list(arguments), [first])


def quiet_others() -> None:
    """Silence what other libraries say to each other: deprecations between them, and advertisements.

    Warnings of the user's own code and data stay.
    """
    for message in DEPRECATED:
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(lightning|torch|jsonargparse|timm)\b")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether a message of Lightning is one about the run."""
    message = record.getMessage()
    return not any(product in message for product in ADVERTISEMENTS)
