"""The tables: every pattern compiles, names match as a whole, tables hold no code."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from lightning_gluon.partition.knowledge import matching, names_match, pattern, table_entries
from lightning_gluon.partition.known import peft, timm, torch, transformers
from lightning_gluon.partition.known.rows import Fused, RawMap

LIBRARIES = [peft, timm, torch, transformers]


def tables(library: ModuleType) -> dict[str, object]:
    return {name: value for name, value in vars(library).items() if name.isupper()}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_holds_tables_only(library: ModuleType) -> None:
    own = [value for value in vars(library).values() if getattr(value, "__module__", "") == library.__name__]
    assert own == [] and not any(inspect.isfunction(value) for value in vars(library).values())
    assert tables(library)


def test_every_pattern_compiles_and_has_a_use() -> None:
    for library in LIBRARIES:
        for name, value in tables(library).items():
            if isinstance(value, tuple) and all(isinstance(entry, str) for entry in value):
                pattern(name)


def test_rows_are_of_one_kind() -> None:
    assert all(isinstance(row, Fused) for row in table_entries("FUSED"))
    assert all(isinstance(row, RawMap) for row in table_entries("RAW_MAPS"))


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        ("HEADS", "lm_head", True),
        ("HEADS", "headway", False),
        ("HEADS", "head_dist", True),
        ("NOT_HEADS", "conv_head", True),
        ("INPUT_PARTS", "patch_embed", True),
        ("INPUT_PARTS", "conv_in_proj", False),
        ("TOKENS", "cls_token", True),
        ("RATES", "A_log", True),
        ("WRAPPERS", "base_layer", True),
    ],
)
def test_a_name_matches_as_a_whole(table: str, name: str, expected: bool) -> None:
    assert names_match(table, name) is expected
    assert matching(table, [name]) == ([name] if expected else [])
