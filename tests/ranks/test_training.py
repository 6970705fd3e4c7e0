"""Trainings over ranks end with the weights of one process: accumulation, clipping, second gradients, monitors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.ranks._gloo import Ranks
from tests.ranks._training import Run, far, fit, fit_all

EXACT = {"orthogonalizer": "svd", "noise_floor": 0.0}  # every gradient counts, however small
CLOSE = 1e-12  # in fp64; measured: up to 9e-14, from the order of the sums
# In fp32 the LMO amplifies the order of the sums, which DDP's own all-reduce changes as well; measured: up to 7e-5.
CLOSE_SINGLE = 1e-3
SAME_ORDER = 1e-6  # in fp32, where one process adds the gradients as the ranks do
# The momenta of a ViT have small singular values after so few images; measured: 4e-11.
CLOSE_IMAGES = 1e-8
WINDOW: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
PARTIAL: dict[str, Any] = {"accumulate_grad_batches": 3}  # five batches: the second window of an epoch holds two
UNCLIPPED: dict[str, Any] = {"accumulate_grad_batches": 2}
slow = pytest.mark.slow
STRATEGIES = ("ddp", "fsdp2", *(pytest.param(name, marks=slow) for name in ("hsdp", "tp", "fsdp+tp")))
TWO_GRADIENTS = ("gluon-mvr1", "gluon-mvr2", "gluon-mvr3", "muon-mvr", "limuon", "mars", "gluon-igt", "gluon-anchor")


def window_of(strategy: str) -> dict[str, Any]:
    """Return a window; torch does not clip plain tensors together with cut ones, nor tensors of two meshes."""
    return UNCLIPPED if "tp" in strategy else WINDOW


def check(ranks: Ranks, runs: Sequence[Run], close: float = CLOSE) -> None:
    found = ranks.call(fit_all, runs, timeout=60 + 30 * len(runs))
    for index, run in enumerate(runs):
        expected = fit(replace(run, strategy="one", given={}))
        for weights in found:
            same = all(np.array_equal(one, weights[index][name]) for name, one in found[0][index].items())
            assert same, f"ranks differ: {run}"
        assert far(found[0][index], expected) <= close, run


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_end_where_one_does(two_ranks: Ranks, strategy: str) -> None:
    check(two_ranks, [
        Run(strategy, "gluon", EXACT, trainer=window_of(strategy), double=True),
        Run(strategy, "gluon-mvr1", EXACT, trainer=window_of(strategy), double=True),
        Run(strategy, "gluon-igt", EXACT, trainer=PARTIAL, double=True),
        Run(strategy, "gluon", EXACT, trainer=window_of(strategy), double=True, callbacks=("monitor",)),
    ])  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_end_close_by_in_single_precision(two_ranks: Ranks, strategy: str) -> None:
    check(two_ranks, [Run(strategy, method, EXACT) for method in ("gluon", "muon")], CLOSE_SINGLE)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_sums_in_the_same_order_give_the_same_weights_in_single_precision(two_ranks: Ranks, strategy: str) -> None:
    """Two ranks end where one process does that adds the gradients of two half batches, as the ranks do."""
    runs = [Run(strategy, method, EXACT) for method in ("gluon", "muon", "torch adamw")]
    found = two_ranks.call(fit_all, runs)[0]
    for run, weights in zip(runs, found, strict=True):
        assert far(weights, fit(replace(run, strategy="one", parts=2))) <= SAME_ORDER


@slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_sums_changes_torchs_optimizers_too(two_ranks: Ranks, strategy: str) -> None:
    runs = [Run(strategy, method, EXACT) for method in ("torch sgd", "torch adamw", "gluon", "muon")]
    found = two_ranks.call(fit_all, runs, timeout=300)[0]
    distances = {}
    for run, weights in zip(runs, found, strict=True):
        distances[run.method] = far(weights, fit(replace(run, strategy="one")))
    print(strategy, distances)
    assert 0 < distances["torch sgd"] < 1e-5
    assert max(distances.values()) <= CLOSE_SINGLE


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images(two_ranks: Ranks, strategy: str) -> None:
    check(two_ranks, [Run(strategy, "gluon", EXACT, model="vit", double=True)], CLOSE_IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_options_of_a_strategy(two_ranks: Ranks, strategy: str) -> None:
    exact = [Run(strategy, "gluon-mvr1", {**EXACT, "fold": True}, trainer=UNCLIPPED, double=True)]
    if strategy not in ("ddp", "tp"):
        kept = {"reshard_after_forward": False}
        exact += [
            Run(strategy, method, EXACT, trainer=WINDOW, given=kept, double=True) for method in ("gluon", "gluon-mvr1")
        ]
    check(two_ranks, exact)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_second_gradients(two_ranks: Ranks, strategy: str) -> None:
    runs = [
        Run(strategy, method, EXACT, trainer=window, double=True)
        for method in TWO_GRADIENTS
        for window in (window_of(strategy), PARTIAL)
    ]
    check(two_ranks, runs)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp", "fsdp+tp"])  # torch splits an MLP into equal parts alone
def test_four_ranks(four_ranks: Ranks, strategy: str) -> None:
    methods = ("gluon", "gluon-mvr1", "muon")
    check(four_ranks, [Run(strategy, method, EXACT, trainer=window_of(strategy), double=True) for method in methods])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_radii_that_are_measured(two_ranks: Ranks, strategy: str) -> None:
    rules = [Run(strategy, "gluon", EXACT, double=True, steps=12, callbacks=(one,)) for one in ("smoothness",)]
    check(two_ranks, [*rules, Run(strategy, "gluon", {**EXACT, "lr": "auto"}, double=True, steps=20)], 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_precision_keeps_the_ranks_together(two_ranks: Ranks, strategy: str, precision: str) -> None:
    runs = [Run(strategy, method, trainer={"precision": precision}) for method in ("gluon", "gluon-mvr1")]
    found = two_ranks.call(fit_all, runs)
    for one, other in zip(*found, strict=True):
        assert all(np.array_equal(value, other[name]) for name, value in one.items())
        assert all(np.isfinite(value).all() for value in one.values())
