"""The table of options: complete, checked, shown as help, and open for rows from outside."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import get_type_hints

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_gluon import Gluon, configure_optimizers
from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.norms.coefficients import ORTHOGONALIZERS
from lightning_gluon.norms.spectral import SCALINGS
from lightning_gluon.norms.table import NORMS
from lightning_gluon.options import CHECKS, SETTINGS, Options, register_option, unregister_option
from lightning_gluon.step.checks import COMMON
from lightning_gluon.two_point.reference import REFERENCES
from lightning_gluon.valid import number


def documented() -> list[str]:
    return re.findall(r"^ {8}(\w+): ", (inspect.getdoc(Options) and Options.__doc__) or "", re.MULTILINE)


def test_every_option_has_a_type_a_check_and_a_line_of_help() -> None:
    assert list(CHECKS) == list(get_type_hints(Options)) == documented()
    assert not set(CHECKS) & set(SETTINGS)


def test_every_option_that_is_read_is_in_the_table_and_its_default_is_allowed() -> None:
    rows = [COMMON, *(row.options for row in ESTIMATORS.values()), *(norm.defaults() for norm in NORMS.values())]
    for row in rows:
        for name, default in row.items():
            assert CHECKS[name](name, default) == default


@pytest.mark.parametrize(
    ("name", "choices"), [("orthogonalizer", ORTHOGONALIZERS), ("scaling", SCALINGS), ("reference", REFERENCES)]
)
def test_choices_are_those_there_are(name: str, choices: object) -> None:
    with pytest.raises(ValueError, match="to be one of ") as error:
        CHECKS[name](name, "none of them")
    listed = str(error.value).partition("one of ")[2].partition(", but got")[0].split(", ")
    assert [choice for choice in listed if choice != "None"] == list(choices)  # type: ignore[call-overload]


@pytest.mark.parametrize("reader", [Gluon, configure_optimizers, GluonOptimizer])
def test_all_readers_take_the_table(reader: object) -> None:
    assert "Unpack[Options]" in str(inspect.signature(reader).parameters["options"].annotation)  # type: ignore[arg-type]


@pytest.fixture
def sharpness() -> Iterator[None]:
    register_option("sharpness", float | None, number(0, 2), "Sharpness of a norm from outside.")
    yield
    unregister_option("sharpness")


def test_an_option_from_outside_is_checked_and_shown(sharpness: None) -> None:
    parser = ArgumentParser(prog="test")
    parser.add_class_arguments(Gluon, "optimizer", skip={"params"})
    text = parser.format_help()
    assert re.search(r"--optimizer.sharpness SHARPNESS\s+Sharpness of a norm from outside", text)
    assert re.search(r"--optimizer.rank RANK\s+Rank of the momentum that `limuon`\s+and", text)
    group = {"params": [torch.nn.Parameter(torch.ones(2, 2))], "role": "hidden"}
    with pytest.raises(ValueError, match=r"`sharpness` of group 'hidden' to satisfy 0 <= sharpness < 2, but got 3"):
        Gluon([{**group, "sharpness": 3.0}], lr=0.1)
    assert Gluon([{**group, "sharpness": 1.0}], lr=0.1).param_groups[0]["sharpness"] == 1.0


def test_names_that_are_taken_or_no_names() -> None:
    for name, problem in (("rank", "is taken"), ("lr", "is taken"), ("two words", "is no Python identifier")):
        with pytest.raises(ValueError, match=rf"but '{name}' {problem}"):
            register_option(name, int, number(), "Nothing.")
