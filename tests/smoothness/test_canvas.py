"""Empty figures, and axes of numbers written out."""

from __future__ import annotations

import math
import sys

import pytest

from lightning_gluon.smoothness.canvas import log_scale, new_figure, shades
from lightning_gluon.smoothness.plots import smoothness_figures


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    sample = {"role": "hidden", "radius": 1.0, "step": 0, "layer": None}
    with pytest.raises(ImportError, match=r"Expected `matplotlib` to be installed.* pip install 'matplotlib"):
        smoothness_figures([sample])


def test_an_axis_is_logarithmic_if_it_has_something_to_show():
    _, (one, other) = new_figure("two", 2)
    log_scale(one, [math.nan, 0.0])
    log_scale(other, [math.nan, 0.0, 3.0])
    assert (one.get_yscale(), other.get_yscale()) == ("linear", "log")


def test_every_kind_has_a_colour_of_its_own():
    assert len({tuple(colour) for colour in shades(10)}) == 10
    assert len(shades(1)) == 1
