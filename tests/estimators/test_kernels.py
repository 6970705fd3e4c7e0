"""Kernels against the impulse response of their own recursions, the anneal against its definition, and both ends."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import METHODS, Gluon, configure_optimizers
from lightning_gluon.estimators.kernels import Kernel
from lightning_gluon.estimators.recursions import ESTIMATORS
from tests.estimators._replay import EXACT, LR, SHAPE, gap, gradient, lmo, optimizer_of, replayed, start, take, trained

B = 0.9
LENGTH = 40

# ------------------------------------------------------------------ newest weight and mean age


def response(name: str, options: dict[str, Any], steps: int = 4000) -> list[float]:
    """Return what one gradient of 1 weighs `k` steps later."""
    row = ESTIMATORS[name]
    group = {"momentum": B, **row.options, **options}
    buffers = {buffer: [torch.zeros(1, dtype=torch.float64)] for buffer in row.names(group)}
    now, found = row.at(group), []
    for step in range(steps):
        impulse = [torch.full((1,), float(step == 0), dtype=torch.float64)]
        found.append(row.update(buffers, impulse, impulse, now)[0].item())
    return found


LINEAR: list[tuple[str, dict[str, Any]]] = [
    ("ema", {}),
    ("nesterov", {"momentum": 0.95}),
    ("igt", {}),
    ("mvr1", {"gamma": 0.0}),
    ("mvr2", {"gamma": 0.0, "q": 0.2}),
    ("mvr3", {"gamma": 0.0}),
    ("limuon", {"gamma": 0.0}),
    ("mars", {"gamma": 0.0, "clip": None}),
    ("mars_approximate", {"clip": None}),
    ("mars_approximate", {"gamma": 0.6, "clip": None}),
    ("averaged", {}),
    ("anchored", {}),
    ("dual_ema", {}),
    *(("dual", {"steps": steps, "total_steps": 640}) for steps in (0, 192, 400, 640, 700)),
    ("dual", {"steps": 0, "total_steps": 640, "kernel_before": "nesterov"}),
    ("dual", {"steps": 3, "total_steps": 4}),  # an age below what there is
    *(("mix", {"steps": steps, "total_steps": 640}) for steps in (0, 192, 640)),
    ("mix", {"mix": 2, "steps": 500, "total_steps": 640}),
]


@pytest.mark.parametrize(("name", "options"), LINEAR)
def test_newest_weight_and_mean_age_are_those_of_the_impulse_response(name: str, options: dict[str, Any]) -> None:
    row = ESTIMATORS[name]
    assert row.kernel is not None
    told = row.kernel({"momentum": B, **row.options, **options})
    assert told is not None
    weights = response(name, options)
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert told.newest == pytest.approx(weights[0], abs=1e-12)
    assert told.age == pytest.approx(sum(k * weight for k, weight in enumerate(weights)), abs=1e-7)


def test_an_optimizer_tells_the_kernels_of_its_groups() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    assert Gluon(net, lr=0.1, method="gluon", momentum=0.75).kernel()["hidden"] == Kernel(0.25, 3.0)
    assert set(Gluon(net, lr=0.1, method="muon").kernel()) == {"hidden"}  # AdamW is not linear
    assert Gluon(net, lr=0.1, method="gluon-mvr1").kernel() == {}
    assert Gluon(net, lr=0.1, method="mars").kernel() == {}
    assert Gluon(net, lr=0.1, method="mars-approximate").kernel() == {}  # its clip is not linear
    optimizer = Gluon(net, lr=0.1, method="gluon-dual", total_steps=640)
    assert optimizer.kernel()["bias"] == pytest.approx((0.1, 9.0))
    for group in optimizer.param_groups:
        group["steps"] = 192
    assert optimizer.kernel()["bias"] == pytest.approx((0.1, 30.0))
    for group in optimizer.param_groups:
        group["steps"] = 640
    assert optimizer.kernel()["bias"] == pytest.approx((0.14, 12.0))


def test_the_shipped_kernels() -> None:
    """The numbers that the rows' constants stand for, at 640 steps: newest weight and mean age."""
    at = {"momentum": B, "total_steps": 640}
    mix = {**at, **ESTIMATORS["mix"].options}
    told = [ESTIMATORS["mix"].kernel({**mix, "steps": steps}) for steps in (0, 192, 640)]  # type: ignore[misc]
    assert told[0] == pytest.approx((0.1, 9.0))
    assert told[1] == pytest.approx((0.0389, 29.35), rel=0.01)
    assert told[2] == pytest.approx((0.0848, 15.28), rel=0.01)
    assert METHODS["muon-dual"].rules["hidden"].options["kernel_before"] == "nesterov"


# ------------------------------------------------------------------ replays


@pytest.mark.parametrize("before", ["ema", "nesterov"])
def test_the_dual_kernel_by_its_definition(before: str) -> None:
    """u = b1 M + (1 - b1) g, M <- b2 M + (1 - b2) g, b1 = 1 - w0, b2 = 1 - b1 / a; linear from the switch on."""
    length, switch, (w0, a), (v0, c) = LENGTH, 0.3, (0.1, 0.2), (0.14, 0.05)
    m: list[Tensor] = []

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        g = gradient(step, path[-1])
        b1, b2 = (B, B) if before == "ema" else (B**2, B)
        if step >= switch * length:
            t = (step - switch * length) / (length - switch * length)
            b1 = 1 - ((1 - t) * w0 + t * v0)
            b2 = 1 - b1 / (length * ((1 - t) * a + t * c))
        last = m[-1] if m else g
        m.append(b2 * last + (1 - b2) * g)
        return path[-1], b1 * last + (1 - b1) * g

    options = {"kernel_before": before, "kernel_start": (w0, a), "kernel_end": (v0, c), "switch": switch}
    found = trained("gluon-dual", steps=LENGTH, total_steps=LENGTH, **options)
    assert gap(found, replayed(estimate, steps=LENGTH)) <= EXACT


@pytest.mark.parametrize("count", [2, 8])
def test_the_mixture_by_its_definition(count: int) -> None:
    """u = sum_j w_j M_j; ages at equal ratios; weights of all but the oldest grow linearly."""
    length, switch, (young, old), (first, last) = LENGTH, 0.25, (0.05, 0.6), (0.8, 0.2)
    ages = [length * young * (old / young) ** (j / (count - 1)) for j in range(count)]
    averages: list[Tensor] = []

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        g = gradient(step, path[-1])
        t = max(0.0, (step - switch * length) / (length - switch * length))
        oldest = (1 - t) * first + t * last
        weights = [(1 - oldest) * 2 * j / (count * (count - 1)) for j in range(1, count)] + [oldest]
        kept = [B if step < switch * length else age / (1 + age) for age in ages]
        before = averages[:] or [g] * count
        averages[:] = [b * m + (1 - b) * g for b, m in zip(kept, before, strict=True)]
        return path[-1], sum((w * m for w, m in zip(weights, averages, strict=True)), torch.zeros(SHAPE).double())

    options = {"mix": count, "mix_ages": (young, old), "mix_weights": (first, last), "switch": switch}
    found = trained("gluon-mix", steps=LENGTH, total_steps=LENGTH, **options)
    assert gap(found, replayed(estimate, steps=LENGTH)) <= EXACT


def test_muon_dual_by_its_definition() -> None:
    """Muon's scaling and start; before the switch its own Nesterov momentum."""
    b = 0.95
    m, path = torch.zeros(SHAPE).double(), [start()]
    for step in range(LENGTH):
        g, b1, b2 = gradient(step, path[-1]), b**2, b
        if step >= 0.3 * LENGTH:
            t = (step - 0.3 * LENGTH) / (0.7 * LENGTH)
            b1 = 1 - (0.1 + 0.04 * t)
            b2 = max(0.0, 1 - b1 / (LENGTH * ((1 - t) * 30 + t * 12) / 640))  # no age is below b1 steps
        direction, m = b1 * m + (1 - b1) * g, b2 * m + (1 - b2) * g
        scale = math.sqrt(max(1, SHAPE[0] / SHAPE[1])) / math.sqrt(SHAPE[0] / SHAPE[1])
        path.append(path[-1] - LR * scale * lmo(direction))
    assert gap(trained("muon-dual", steps=LENGTH, total_steps=LENGTH), path) <= EXACT


# ------------------------------------------------------------------ reductions


def test_before_the_switch_they_are_what_they_were() -> None:
    never = {"switch": 1.0, "total_steps": 8}
    assert gap(trained("gluon-dual", **never), trained("gluon")) == 0
    assert gap(trained("gluon-dual", kernel_before="nesterov", **never), trained("gluon-nesterov")) <= 1e-12
    assert gap(trained("gluon-mix", **never), trained("gluon")) <= 1e-12
    assert gap(trained("muon-dual", **never), trained("muon")) <= 1e-12


def test_equal_pairs_on_both_sides_are_no_switch_bit_for_bit() -> None:
    pair = (0.25, 3 / 8)  # at a momentum of .75 an ema of age 3, of 8 steps; all exact in binary
    options = {"momentum": 0.75, "kernel_start": pair, "kernel_end": pair, "total_steps": 8}
    assert gap(trained("gluon-dual", switch=0.5, **options), trained("gluon-dual", switch=1.0, **options)) == 0
    assert gap(trained("gluon-dual", switch=0.0, **options), trained("gluon", momentum=0.75)) == 0


def test_a_constant_pair_is_the_dual_ema() -> None:
    """(w0, a) = (.1, 90): LionMuon's (.9, .99) with a spectral step every time."""
    pair = {"kernel_start": (0.1, 0.9), "kernel_end": (0.1, 0.9), "switch": 0.0, "total_steps": 100}
    assert gap(trained("gluon-dual", **pair), trained("lionmuon", every=1)) <= 1e-12


# ------------------------------------------------------------------ cost, resume, length


def test_bytes_and_gradients() -> None:
    weight = nn.Parameter(start().float())
    per = {
        (method, mix): optimizer_of(weight, method, total_steps=8, **({"mix": mix} if mix else {})).memory()
        for method, mix in (("gluon-dual", None), ("gluon-mix", 2), ("gluon-mix", 8))
    }
    assert [one["bytes_per_parameter"] for one in per.values()] == [4.0, 8.0, 32.0]
    assert all(one["by_kind"]["reference"] == 0 for one in per.values())
    assert optimizer_of(weight, "gluon-dual", total_steps=8).reference_point is None


@pytest.mark.parametrize("method", ["gluon-dual", "gluon-mix", "muon-dual"])
@pytest.mark.parametrize("saved_at", [1, 4])
def test_resume_is_exact_before_and_after_the_switch(method: str, saved_at: int) -> None:
    weight, other = nn.Parameter(start()), nn.Parameter(start())
    optimizer = optimizer_of(weight, method, total_steps=8)
    for step in range(saved_at):
        take(optimizer, weight, step)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = optimizer_of(other, method, total_steps=8)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        other.copy_(weight)
    for step in range(saved_at, 10):  # past the end: the last kernel stays
        take(optimizer, weight, step)
        take(resumed, other, step)
    assert torch.equal(weight, other)


@pytest.mark.parametrize("method", ["gluon-dual", "gluon-mix"])
def test_compiled_steps_make_one_graph_and_agree(method: str) -> None:
    """The weights change in every step; as numbers each would make a graph of its own."""
    from torch._dynamo.testing import CompileCounter

    eager = trained(method, steps=6, total_steps=6)
    torch._dynamo.reset()
    counter = CompileCounter()
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, method, total_steps=6, compile=True)
    optimizer._round._compiled = torch.compile(_all(), backend=counter, dynamic=False)  # type: ignore[misc]
    for step in range(6):
        take(optimizer, weight, step)
    assert counter.frame_count == 1
    assert gap([weight.detach()], eager[-1:]) <= 1e-12


def _all() -> Any:
    from lightning_gluon.step.advance import advance_all_

    return advance_all_


def test_the_length_is_asked_for() -> None:
    weight = nn.Parameter(start())
    for method in ("gluon-dual", "gluon-mix", "muon-dual"):
        with pytest.raises(ValueError, match=rf"'{method}' needs to know how long .* Pass `total_steps=`"):
            optimizer_of(weight, method)
    with pytest.raises(ValueError, match=r"`total_steps` of group 'hidden' to be a whole number >= 1, but got 2.5"):
        optimizer_of(weight, "gluon-dual", total_steps=2.5)
    assert Gluon([weight], lr=0.1, total_steps=8).param_groups[0].get("total_steps") is None  # nobody reads it


def test_a_trainer_tells_the_length() -> None:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return configure_optimizers(self, "gluon-dual", lr=0.1)

    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Net(), DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=2))
    assert {group["total_steps"] for group in trainer.optimizers[0].param_groups} == {12}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kernel_start": (1.5, 0.1)},
            r"`kernel_start` of group 'hidden' to satisfy 0 <= kernel_start <= 1, but got 1.5",
        ),
        ({"kernel_end": 0.1}, r"`kernel_end` of group 'hidden' to be two numbers, but got 0.1"),
        ({"kernel_before": "adam"}, r"`kernel_before` of group 'hidden' to be one of ema, nesterov, but got 'adam'"),
        ({"switch": 2}, r"`switch` of group 'hidden' to satisfy 0 <= switch <= 1, but got 2"),
    ],
)
def test_values_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizer_of(nn.Parameter(start()), "gluon-dual", total_steps=8, **options)
    with pytest.raises(ValueError, match="`mix` of group 'hidden' to be a whole number >= 2 and <= 8, but got 9"):
        optimizer_of(nn.Parameter(start()), "gluon-mix", total_steps=8, mix=9)
