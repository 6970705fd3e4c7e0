"""Never a hang: if one rank is not like the others, all end within half a minute, with the parameter's name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ranks import _faults
from tests.ranks._faults import MESSAGE, NAME, ODD
from tests.ranks._gloo import DIED, HUNG, Outcome, Ranks
from tests.ranks._training import Run

SOON = 30  # seconds


@pytest.fixture
def fresh_ranks() -> Iterator[Ranks]:
    """Ranks of their own, which leave when they fail."""
    ranks = Ranks(2, timeout=25, leaves=True)
    yield ranks
    ranks.close()


def ended(outcomes: list[Outcome]) -> list[str]:
    """Return every rank's error; there is one, and nobody waited for ever."""
    errors = [one.error or "" for one in outcomes]
    assert all(error and error not in (HUNG, DIED) for error in errors), errors
    assert all(one.seconds < SOON for one in outcomes)
    return errors


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("fault", ["nan", "missing"])
def test_a_gradient_that_is_wrong_on_one_rank(two_ranks: Ranks, fault: str, strategy: str) -> None:
    for found in two_ranks.call(_faults.step_with, fault, strategy, {}, timeout=SOON):
        assert found["error"] is not None and NAME in found["error"]
        assert found["error"].startswith("FloatingPointError" if fault == "nan" else "RuntimeError")
        assert found["moved"] == [] and found["equal"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_step_is_left_out_on_all_ranks(two_ranks: Ranks, strategy: str) -> None:
    options = {"on_nonfinite": "skip"}
    for found in two_ranks.call(_faults.step_with, "nan", strategy, options, timeout=SOON):
        assert found == {"error": None, "moved": [], "equal": True}


@pytest.mark.parametrize(
    ("strategy", "what"),
    [
        ("fsdp2", "method"),
        pytest.param("ddp", "method", marks=pytest.mark.slow),
        pytest.param("ddp", "frozen", marks=pytest.mark.slow),
        pytest.param("fsdp2", "order", marks=pytest.mark.slow),
        pytest.param("ddp", "order", marks=pytest.mark.slow),
    ],
)
def test_groups_that_differ(fresh_ranks: Ranks, strategy: str, what: str) -> None:
    for error in ended(fresh_ranks.attempt(_faults.differ, strategy, what, timeout=SOON)):
        assert error.startswith("RuntimeError: Rank 1 has other parameters")
        assert "'model." in error


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp", "tp"])
@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
def test_an_exception_in_one_closure(fresh_ranks: Ranks, strategy: str, method: str) -> None:
    errors = ended(fresh_ranks.attempt(_faults.closure_broken, strategy, method, timeout=SOON))
    assert MESSAGE in errors[ODD]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_backward", "on_before_optimizer_step"])
def test_an_exception_on_one_rank_of_a_trainer(fresh_ranks: Ranks, strategy: str, hook: str) -> None:
    errors = ended(fresh_ranks.attempt(_faults.fit_broken, Run(strategy), hook, timeout=SOON))
    assert MESSAGE in errors[ODD]
