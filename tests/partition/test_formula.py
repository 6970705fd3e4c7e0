"""Formulas of the tables."""

from __future__ import annotations

import pytest

from lightning_gluon.partition.formula import formula_value
from lightning_gluon.partition.knowledge import table_entries

VALUES = {"heads": 4, "size": 8, "gated": True, "plain": False, "zero": 0}


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("3", 3),
        ("heads * size + 2", 34),
        ("(shared or heads) * size", 32),
        ("heads // 3 * size - 1", 7),
        ("heads % 2", 0),
        ("heads == 2 * 2", True),
        ("heads < size", True),
        ("not plain", True),
        ("not unknown", True),
        ("gated and heads", 4),
        ("plain and heads", False),
        ("unknown", None),
        ("unknown * heads", None),
        ("heads // zero", None),
        ("unknown == 2", False),
    ],
)
def test_values(formula: str, expected: object) -> None:
    assert formula_value(formula, VALUES.get) == expected


@pytest.mark.parametrize("formula", ["open('x')", "heads.size", "heads ** 2", "'text'", "heads > 2", "[1]"])
def test_nothing_else_is_understood(formula: str) -> None:
    with pytest.raises(ValueError, match=r"Expected .* but got"):
        formula_value(formula, VALUES.get)


def test_every_formula_of_the_tables_is_understood() -> None:
    for row in table_entries("FUSED"):
        for formula in (*row.sizes, row.groups, row.when, row.count):
            if formula:
                formula_value(formula, VALUES.get)
