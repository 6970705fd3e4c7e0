"""Signal and noise of a batch from its parts, against halves, pairs and a known mean."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon.two_point.parts import BatchParts, PartReadings, Spread


def draw(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(count)]


def seen(parts: BatchParts, groups: list[dict], weight: nn.Parameter, new: list[Tensor], old: list[Tensor]) -> Tensor:
    """Run the backward passes of a window on one rank, as a session does, and return `c_old`."""
    weight.grad, references = None, torch.zeros_like(weight)
    for one, other in zip(new, old, strict=True):
        with parts.first(groups):
            (weight * one).sum().backward()
        main, weight.grad = weight.grad, None
        with parts.second(groups):
            (weight * other).sum().backward()
        references += weight.grad
        weight.grad = main
    return references


def ended(parts: BatchParts, groups: list[dict], references: dict[Tensor, Tensor], scale: float = 1.0) -> PartReadings:
    return parts.end(groups, references, scale, lambda tensor: tensor, 1)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_signal_is_the_mean_product_of_two_parts(count: int) -> None:
    weight = nn.Parameter(draw(1, seed=9)[0])
    groups = [{"name": "hidden", "params": [weight]}]
    new, old = draw(count), draw(count, seed=1)
    parts = BatchParts()
    references = seen(parts, groups, weight, new, old)
    reading = ended(parts, groups, {weight: references}).read()["hidden"]
    for spread, one in ((reading.difference, [a - b for a, b in zip(new, old, strict=True)]), (reading.gradient, new)):
        pairs = [(a * b).sum() for a, b in combinations(one, 2)]
        assert spread.signal == pytest.approx(count**2 * (sum(pairs) / len(pairs)).item(), rel=1e-6)
        assert spread.power == pytest.approx(sum(one).square().sum().item(), rel=1e-6)
    if count == 2:  # <d_A, d_B> over ||(d_A + d_B) / 2||^2, the parts being halves of means
        a, b = (2 * (x - y) for x, y in zip(new, old, strict=True))
        gamma = (a * b).sum() / ((a + b) / 2).square().sum()
        assert reading.difference.signal / reading.difference.power == pytest.approx(gamma.item(), rel=1e-6)


def test_ranks_are_parts_too() -> None:
    """Two ranks of two parts each tell the same as four parts on one: only sums of squares and the mean are shared."""
    four = draw(4)
    alone = Spread.of(sum(four).square().sum().item(), sum(x.square().sum() for x in four).item(), 4, 1)
    half = (sum(x.square().sum() for x in four) / 2).item()
    mean = (sum(four) / 2).square().sum().item()
    together = Spread.of(mean, half, 4, 2)
    assert together.signal == pytest.approx(alone.signal / 4) and together.power == pytest.approx(alone.power / 4)


def test_the_signal_has_no_bias() -> None:
    """Mean (1, ..., 1) and noise of size 1: over many batches of two parts the signal is that of the mean."""
    generator = torch.Generator().manual_seed(3)
    truth, signals, powers = torch.ones(20), [], []
    for _ in range(2000):
        a, b = (truth / 2 + torch.randn(20, generator=generator) for _ in range(2))
        spread = Spread.of((a + b).square().sum().item(), (a.square().sum() + b.square().sum()).item(), 2, 1)
        signals.append(spread.signal)
        powers.append(spread.power)
    assert sum(signals) / 2000 == pytest.approx(20, abs=1.5)  # standard error 0.5
    assert sum(powers) / 2000 == pytest.approx(20 + 2 * 20, rel=0.03)


def test_a_loss_scale_is_taken_out_and_a_single_part_tells_nothing() -> None:
    weight = nn.Parameter(draw(1)[0])
    groups = [{"name": "hidden", "params": [weight]}]
    parts, new, old = BatchParts(), draw(2), draw(2, seed=1)
    references = seen(parts, groups, weight, new, old)
    plain = ended(parts, groups, {weight: references}).read()
    references = seen(parts, groups, weight, [8 * x for x in new], [8 * x for x in old])
    weight.grad /= 8
    scaled = ended(parts, groups, {weight: references / 8}, scale=8.0).read()
    assert scaled["hidden"].difference == pytest.approx(plain["hidden"].difference)
    assert scaled["hidden"].gradient == pytest.approx(plain["hidden"].gradient)
    references = seen(parts, groups, weight, new[:1], old[:1])
    assert ended(parts, groups, {weight: references}).read() == {}


def test_a_window_is_continued_from_a_checkpoint() -> None:
    weight = nn.Parameter(draw(1)[0])
    groups = [{"name": "hidden", "params": [weight]}]
    whole, parts, later, new, old = BatchParts(), BatchParts(), BatchParts(), draw(3), draw(3, seed=1)
    expected = ended(whole, groups, {weight: seen(whole, groups, weight, new, old)}).values
    seen(parts, groups, weight, new[:1], old[:1])
    later.load(groups, parts.saved(groups, lambda tensor: tensor))
    seen(later, groups, weight, new[1:], old[1:])
    weight.grad = sum(new)
    assert torch.equal(ended(later, groups, {weight: sum(old)}).values[:, :3], expected[:, :3])
    with pytest.raises(ValueError, match="Expected `parts` of group 'hidden'"):
        later.load(groups, {"hidden": torch.ones(2)})
