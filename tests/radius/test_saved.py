"""Values of a checkpoint, read with one sentence for each that no run has written."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gluon.radius.saved import Saved
from lightning_gluon.valid import number

STATE = {
    "steps": 3,
    "lr": 0.1,
    "on": True,
    "rates": [1.0, 2],
    "none": None,
    "part": {"x": -1.0},
    "radii": {"hidden": 1, "head": [0.5, 2.0]},
    "before": {"a": torch.ones(2), "other": torch.ones(3)},
}


@pytest.fixture
def saved() -> Saved:
    return Saved(STATE, "Owner")


def test_values_come_back_as_plain_ones(saved):
    assert (saved.whole("steps"), saved.number("lr"), saved.flag("on"), saved.numbers("rates")) == (
        3,
        0.1,
        True,
        [1, 2],
    )
    assert saved.radii("radii") == {"hidden": 1.0, "head": [0.5, 2.0]}
    assert (saved.part("none"), saved.optional("none"), saved.optional("lr")) == (None, None, 0.1)
    part = saved.part("part")
    assert part is not None
    assert part.number("x", number(-math.inf)) == -1.0


def test_tensors_are_copies_for_the_parameters_that_are_known(saved):
    parameter = torch.nn.Parameter(torch.zeros(2))
    found = saved.tensors("before", {"a": parameter, "absent": torch.zeros(1)})
    assert list(found) == [parameter]
    assert torch.equal(found[parameter], torch.ones(2))
    assert found[parameter] is not STATE["before"]["a"]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda saved: saved.value("gone"), "the saved state of `Owner` to hold `gone`, but it is missing"),
        (lambda saved: saved.whole("lr"), "`lr` in the saved state of `Owner` to be a whole number >= 0, but got 0.1"),
        (lambda saved: saved.flag("steps"), "`steps` in the saved state of `Owner` to be true or false, but got 3"),
        (lambda saved: saved.numbers("lr"), "`lr` in .* to be a list of numbers, but got 0.1"),
        (lambda saved: saved.numbers("rates", count=3), "`rates` in .* to be 3 numbers, but got 2"),
        (lambda saved: saved.table("lr"), r"the saved state of `Owner\.lr` to be a mapping, but got float"),
        (lambda saved: saved.table("part").number("x"), r"`x` in the saved state of `Owner\.part` .* but got -1"),
        (lambda saved: saved.tensors("before", {"a": torch.ones(3)}), r"`a` .* shape \(3,\), but got \(2,\)"),
        (lambda saved: saved.table("part").only(["y"]), "to hold y, but it has 'x' as well"),
    ],
)
def test_each_fault_has_its_sentence(saved, read, message):
    with pytest.raises(ValueError, match=message):
        read(saved)
