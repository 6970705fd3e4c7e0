"""The table of methods: complete rows, defaults of their sources, radii of the schedule of theory."""

from __future__ import annotations

import pytest

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import METHODS
from lightning_gluon.norms.table import NORMS
from lightning_gluon.options import CHECKS
from lightning_gluon.roles import ROLES

every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_every_role_has_a_rule_of_registered_parts(name: str) -> None:
    row = METHODS[name]
    assert list(row.rules) == list(ROLES) or set(row.rules) == set(ROLES)
    for role, rule in row.rules.items():
        assert rule.norm in NORMS and rule.estimator in ESTIMATORS and rule.radius > 0
        assert not NORMS[rule.norm].matrices or ROLES[role].matrices or rule.norm == "identity", (role, rule)


@every_method
def test_options_of_a_row_are_known_and_in_range(name: str) -> None:
    for rule in METHODS[name].rules.values():
        for option, value in rule.options.items():
            CHECKS[option](option, value)


@every_method
def test_rows_say_what_they_are(name: str) -> None:
    row = METHODS[name]
    assert row.summary and row.source and len(row.summary) < 80
    assert 0 <= row.momentum < 1 and row.weight_decay >= 0


def test_matrices_step_along_the_radius_that_lr_names() -> None:
    assert {name for name, row in METHODS.items() if row.rules["hidden"].radius != 1.0} == set()


def test_defaults_of_the_sources() -> None:
    assert METHODS["muon"].momentum == 0.95 and METHODS["muon"].rules["head"].radius == 0.015
    assert METHODS["scion"].weight_decay == 0.02 and METHODS["scion"].rules["embedding"].radius == 60.0
    assert METHODS["gluon"].theory == (3 / 4, 1 / 2)
    assert METHODS["lionmuon"].rules["hidden"].norm == "alternating"
