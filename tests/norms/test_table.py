"""Norms by name, and the norm of a group."""

from __future__ import annotations

import pytest
import torch

from lightning_gluon import Gluon
from lightning_gluon.norms.spectral import Spectral
from lightning_gluon.norms.table import NORMS, make_norm, norm_of


def test_registry_builds_every_norm():
    for name, kind in NORMS.items():
        assert type(make_norm(name)) is kind
    assert make_norm("spectral", scaling="muon", steps=5) == Spectral("muon", steps=5)


def test_the_norm_of_a_group_has_its_options() -> None:
    optimizer = Gluon(torch.nn.Linear(4, 3), lr=0.1, method="muon", orthogonalizer="svd", scaling="moonlight")
    norms = {group["role"]: norm_of(group) for group in optimizer.param_groups}
    assert norms["hidden"] == Spectral("moonlight", "svd") and type(norms["bias"]) is NORMS["identity"]
    group = {"norm": "spectral", "scaling": "muon", "orthogonalizer": "svd", "orthogonalizer_steps": 3}
    assert norm_of({**group, "orthogonalizer_dtype": None}) == Spectral("muon", "svd", 3)


@pytest.mark.parametrize("name", NORMS)
def test_defaults_of_the_options_are_those_of_the_fields(name: str) -> None:
    options = {"norm": name, **NORMS[name].defaults()}
    assert norm_of(options) == make_norm(name)
