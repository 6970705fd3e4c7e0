"""What `calibrate` measures: how far a gradient agrees with the last step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lightning_gluon import Gluon
from lightning_gluon.radius.agreement import Agreement


def stepped(method: str, model: nn.Module | None = None, **options) -> tuple[Gluon, Agreement, dict]:
    """Take one step on random gradients; return what remembers it, and the weights before."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    optimizer = Gluon(model, lr=0.1, method=method, **options)
    last = Agreement(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    last.remember()
    optimizer.step()
    return optimizer, last, before


def by_hand(optimizer: Gluon, before: dict, names: list[str], decay: float = 0.0) -> tuple[float, float]:
    weights = {name: p for g in optimizer.param_groups for name, p in zip(g["param_names"], g["params"], strict=True)}
    steps = {name: (1 - decay) * before[name] - weights[name].detach() for name in names}
    agreement = sum(float((steps[name] * weights[name].grad).sum()) for name in names)
    return agreement, sum(float(steps[name].norm() * weights[name].grad.norm()) for name in names)


def agreement(optimizer: Gluon, last: Agreement, family: int = 0) -> list[float]:
    return last.agreement({p: p.grad for group in optimizer.param_groups for p in group["params"]}, family).tolist()


@pytest.mark.parametrize(
    ("method", "names", "beside"),
    [
        ("gluon", ["0.weight", "1.weight", "2.weight"], []),  # no vectors
        ("muon", ["0.weight", "1.weight"], ["2.weight"]),  # AdamW steps the head
        ("adamw", ["0.weight", "1.weight", "2.weight"], []),  # there is no LMO
    ],
)
def test_agreement_by_hand(method, names, beside):
    optimizer, last, before = stepped(method, weight_decay=0.0)
    assert len(last.families()) == 1 + bool(beside)
    for family, members in enumerate((names, beside)[: len(last.families())]):
        expected = by_hand(optimizer, before, members)
        assert agreement(optimizer, last, family) == pytest.approx(list(expected), rel=1e-5)
        assert 0 < expected[0] <= expected[1]
    assert set(last.state_dict()["before"]) == {*names, *beside}  # no more is copied


def test_the_decay_of_the_weights_is_left_out():
    optimizer, last, before = stepped("gluon", weight_decay=2.0)
    assert agreement(optimizer, last) == pytest.approx(
        list(by_hand(optimizer, before, ["0.weight", "1.weight", "2.weight"], 0.2)), rel=1e-4
    )


def test_a_model_of_vectors_counts_its_vectors():
    optimizer, last, before = stepped("gluon", nn.LayerNorm(5))
    assert agreement(optimizer, last) == pytest.approx(list(by_hand(optimizer, before, ["weight", "bias"])), rel=1e-5)


def test_nothing_moved_agrees_with_nothing():
    optimizer = Gluon(nn.Linear(3, 3), lr=0.1)
    assert Agreement(optimizer).agreement({}).tolist() == [0.0, 0.0]


def test_agreement_is_not_waited_for():
    with FakeTensorMode():
        optimizer, last, _ = stepped("gluon", on_nonfinite="ignore")
        sums = last.agreement({p: p.grad for group in optimizer.param_groups for p in group["params"]})
        with pytest.raises(DataDependentOutputException):
            sums.tolist()  # the one wait, by whoever asks
