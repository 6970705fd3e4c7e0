"""Rows from outside the package: found everywhere, refused in one sentence, loaded from entry points."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from lightning_gluon import METHODS, Estimator, Gluon, register_estimator, register_method, register_norm
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import Method, Rule
from lightning_gluon.norms import RowNorm
from lightning_gluon.roles import ROLES


def latest(buffers: Any, new: list[Tensor], old: list[Tensor], options: Any) -> list[Tensor]:
    return new


pytestmark = pytest.mark.usefixtures("tables")


def test_registered_rows_are_found_everywhere() -> None:
    register_estimator("last", Estimator(latest, buffers=()))
    rules = {role: Rule("euclidean", "last") for role in ROLES}
    register_method("last-gradient", Method("the last gradient, normalised", "folklore", rules))
    net = nn.Linear(3, 2)
    assert {group["estimator"] for group in Gluon(net, lr=0.1, method="last-gradient").param_groups} == {"last"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: register_norm("spectral", RowNorm), ValueError, "norm called 'spectral' already"),
        (lambda: register_norm("Row Norm", RowNorm), ValueError, "name of a norm to be lower-case"),
        (lambda: register_norm("row2", RowNorm()), TypeError, "`norm` to be a subclass"),
        (lambda: register_estimator("ema", ESTIMATORS["ema"]), ValueError, "estimator called 'ema' already"),
        (lambda: register_estimator("new", len), TypeError, "`estimator` to be an `Estimator`"),
        (
            lambda: register_estimator("new", Estimator(latest, options={"sharpness": 1.0})),
            ValueError,
            "nobody checks: sharpness",
        ),
        (lambda: register_method("gluon", METHODS["gluon"]), ValueError, "method called 'gluon' already"),
        (lambda: register_method("new", {}), TypeError, "`method` to be a `Method`"),
        (lambda: register_method("new", Method("", "", {})), ValueError, "no rule for hidden, input"),
        (
            lambda: register_method("new", Method("", "", dict.fromkeys(ROLES, Rule("wavy")))),
            ValueError,
            "norm 'wavy' and estimator 'ema', which are not both there",
        ),
    ],
)
def test_rows_that_cannot_be_registered(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_entry_points_are_loaded_before_a_method_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gluon import registry

    class Plugin:
        def load(self) -> Any:
            return lambda: register_method("plugged-in", METHODS["gluon"])

    monkeypatch.setattr(registry, "entry_points", lambda group: [Plugin()] if group == "lightning_gluon" else [])
    registry.load_plugins.cache_clear()
    assert Gluon(nn.Linear(2, 2), lr=0.1, method="plugged-in").param_groups
    registry.load_plugins.cache_clear()
