"""What every test of a benchmark leaves as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from lightning_gluon import METHODS


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tokens in one folder for all tests, and undo that the commands silence Lightning."""
    monkeypatch.setenv("LIGHTNING_GLUON_CACHE", str(tmp_path_factory.getbasetemp() / "tokens"))
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def own_methods() -> Iterator[None]:
    """Forget the methods that a benchmark registers."""
    known = set(METHODS)
    yield
    for name in set(METHODS) - known:
        del METHODS[name]
