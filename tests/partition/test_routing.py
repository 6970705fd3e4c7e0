"""Routing rules that a third party adds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import nn

from lightning_gluon.partition import partition, register_routing, routing
from tests.partition._stand_ins import Attributes, mlp, parameter


class Mixing(Attributes):
    """A third party's module with a matrix that no built-in rule knows."""

    def __init__(self) -> None:
        super().__init__(kernel=parameter(4, 6), linear=nn.Linear(6, 4))


@pytest.fixture(autouse=True)
def only_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(routing, "_ADDED", {})
    return


def test_a_module_type_is_read_at_call_time() -> None:
    with pytest.raises(ValueError, match="none fits 'kernel'"):
        partition(Mixing())
    register_routing(Mixing, {"role": "hidden", "reason": "mixes features", "views": (2, 2)}, replace=True)
    p = partition(Attributes(layer=Attributes(), mixing=Mixing(), out=nn.Linear(4, 2)), rules={"*linear*": "hidden"})
    assert p.views("mixing.kernel") == [(2, 6), (2, 6)] and p.reason("mixing.kernel") == "mixes features"


def test_a_glob_or_a_callable_need_not_match() -> None:
    register_routing("*.kernel", "embedding")
    register_routing("nothing.at.all", "head")
    register_routing(nn.Linear, lambda name, parameter, module: "elementwise" if module.out_features == 4 else None)
    p = partition(Attributes(mixing=Mixing(), out=nn.Linear(4, 2)))
    assert [p.role(f"{name}") for name in ("mixing.kernel", "mixing.linear.weight", "out.weight")] == [
        "embedding",
        "elementwise",
        "head",
    ]
    assert p.reason("mixing.kernel") == "rule '*.kernel' that was registered"


def test_the_user_comes_first() -> None:
    register_routing("0.weight", "embedding")
    assert partition(mlp()).role("0.weight") == "embedding"
    assert partition(mlp(), rules={"0.*": "elementwise"}).role("0.weight") == "elementwise"


def test_a_second_rule_for_one_key() -> None:
    register_routing("0.weight", "embedding")
    with pytest.raises(ValueError, match=r"no rule yet, but '0.weight' was registered as 'embedding'. .*replace=True"):
        register_routing("0.weight", "head")
    register_routing("0.weight", "head", replace=True)
    assert partition(mlp()).role("0.weight") == "head"


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        (3, "hidden", TypeError, "a name glob or a torch.nn.Module type, but got 3"),
        ("*", "hiden", ValueError, "one of hidden, .* but got 'hiden'"),
        ("*", 3, TypeError, "a role, a dict with 'role', or a callable, but got 3"),
    ],
)
def test_a_wrong_rule_is_refused_when_it_is_added(key, value, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register_routing(key, value)
    assert routing._ADDED == {}
