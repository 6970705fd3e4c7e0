"""Checks of values: what is kept, and the one sentence for what is refused."""

from __future__ import annotations

import math
from collections import UserList
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gluon.valid import Check, did_you_mean, dtype_name, number, one_of, pair_of, plain, whole

KEPT: list[tuple[Check, Any, Any]] = [
    (one_of("a", None), None, None),
    (number(), 0, 0),
    (number(none=True), None, None),
    (number(0, 1, signs="< <="), 1, 1),
    (whole(1, none="all"), None, None),
    (whole(-3), -3, -3),
    (pair_of(number()), UserList([1, 2]), (1, 2)),
    (pair_of(number()), np.array([0.5, 0.25]), (0.5, 0.25)),
    (dtype_name(), torch.float16, "float16"),
    (dtype_name(), "torch.bfloat16", "bfloat16"),
    (dtype_name("float32"), None, None),
]


@pytest.mark.parametrize(("check", "value", "kept"), KEPT)
def test_values_that_are_kept(check: Check, value: Any, kept: Any) -> None:
    assert check("x", value) == kept


REFUSED: list[tuple[Check, Any, str]] = [
    (one_of("a", "b"), "c", "Expected `x` of y to be one of a, b, but got 'c'."),
    (number(0, 1), 1, "Expected `x` of y to satisfy 0 <= x < 1, but got 1."),
    (number(0, 1, signs="< <="), 0, "Expected `x` of y to satisfy 0 < x <= 1, but got 0."),
    (number(), math.nan, "Expected `x` of y to satisfy 0 <= x < inf, but got nan."),
    (number(), "1", "Expected `x` of y to satisfy 0 <= x < inf, but got '1'."),
    (number(), None, "Expected `x` of y to satisfy 0 <= x < inf, but got None."),
    (number(), torch.ones(2), "Expected `x` of y to satisfy 0 <= x < inf, but got tensor([1., 1.])."),
    (whole(1, unit=" of steps"), 0, "Expected `x` of y to be a whole number of steps >= 1, but got 0."),
    (whole(1, none="all"), True, "Expected `x` of y to be a whole number >= 1, or None for all, but got True."),
    (whole(-(2**63)), 0.5, "Expected `x` of y to be a whole number, but got 0.5."),
    (pair_of(number()), (1, 2, 3), "Expected `x` of y to be two numbers, but got (1, 2, 3)."),
    (pair_of(number()), "12", "Expected `x` of y to be two numbers, but got '12'."),
    (pair_of(number(0, 1)), (0, 2), "Expected `x` of y to satisfy 0 <= x < 1, but got 2."),
    (dtype_name(), "int8",
     "Expected `x` of y to be a floating-point dtype such as 'bfloat16' or None, but got 'int8'."),
    (dtype_name(), 16, "Expected `x` of y to be a floating-point dtype such as 'bfloat16' or None, but got 16."),
    (dtype_name("float32"), "float16", "Expected `x` of y to be one of float32, None, but got 'float16'."),
]  # fmt: skip


@pytest.mark.parametrize(("check", "value", "sentence"), REFUSED)
def test_values_that_are_refused(check: Check, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match="Expected") as error:
        check("x", value, " of y")
    assert str(error.value) == sentence


def test_plain_values() -> None:
    found = plain((np.float32(0.5), UserList([np.int64(3)]), "text", range(2)))
    assert found == (0.5, [3], "text", [0, 1])
    assert type(found[0]) is float and type(found[1][0]) is int
    lr = torch.tensor(0.1)
    assert plain(lr) is lr, "a learning rate may be a tensor"


def test_names_that_were_probably_meant() -> None:
    assert did_you_mean("Glouon", ["gluon", "muon"]) == " Did you mean `gluon`?"
    assert did_you_mean(7, ["gluon"]) == ""
