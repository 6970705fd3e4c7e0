"""Roles: which hold matrices, which wins a tied tensor, and that pictures tell them apart."""

from __future__ import annotations

from lightning_gluon.roles import MATRIX_ROLES, ROLES


def test_roles_that_hold_matrices() -> None:
    assert set(ROLES) - set(MATRIX_ROLES) == {"bias", "elementwise"}


def test_a_tied_table_counts_as_a_table() -> None:
    order = sorted(ROLES, key=lambda role: ROLES[role].tie)
    assert order.index("embedding") < order.index("head") < order.index("hidden")
    assert len({role.tie for role in ROLES.values()}) == len(ROLES)


def test_pictures_tell_roles_apart() -> None:
    assert len({role.colour for role in ROLES.values()}) == len(ROLES)
    assert len({role.style for role in ROLES.values()}) == len(ROLES)
