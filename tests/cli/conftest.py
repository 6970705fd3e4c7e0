"""Tests of the command line do not see pytest's own arguments."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pytest's own arguments, which the CLI would warn about."""
    monkeypatch.setattr(sys, "argv", ["lightning-gluon"])
