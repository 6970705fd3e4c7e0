"""Tables for programs."""

from __future__ import annotations

import json

import pytest

from lightning_gluon import METHODS
from lightning_gluon.__main__ import main


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    main(arguments)
    return json.loads(capsys.readouterr().out)


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed(capsys, "methods", "--json")
    assert [row["name"] for row in rows] == list(METHODS)
    (muon,) = printed(capsys, "methods", "muon", "--json")
    assert muon["rules"]["hidden"]["estimator"] == "nesterov"


def test_partition(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = '{"in_features": 2, "out_features": 3}'
    weight, bias = printed(capsys, "partition", "--model", "torch.nn.Linear", "--kwargs", sizes, "--json")
    assert (weight["role"], weight["matrices"], weight["frozen"]) == ("hidden", [[3, 2]], False)
    assert (bias["name"], bias["shape"]) == ("bias", [3])


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed(capsys, "recipes", "list", "--json")
    assert {"vit/tiny", "callbacks/monitor"} <= {row["recipe"] for row in rows}
