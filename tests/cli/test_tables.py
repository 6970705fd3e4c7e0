"""Tables of methods say what a method sets."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lightning_gluon import METHODS
from lightning_gluon.cli.tables import detail, overview


def printed(table: object, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 180])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for table in (overview(width), *(detail(name, row) for name, row in METHODS.items())):
        text = printed(table, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text


def test_options_of_norm_and_estimator() -> None:
    text = " ".join(printed(detail("lionmuon", METHODS["lionmuon"]), 180).split())
    assert "every=2, sign_radius=0.25" in text
    assert "options of dual_ema: momentum_carry=0.99" in text
    text = printed(detail("muon", METHODS["muon"]), 180)
    assert "scaling=" not in text  # it has a column
    assert "betas=(0.9, 0.95)" in text


def test_wide_terminals_show_rules_and_sources() -> None:
    assert [column.header for column in overview(180).columns][:3] == ["method", "hidden", "others"]
    assert "2505.13416" in printed(overview(180), 180)
