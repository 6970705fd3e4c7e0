"""LMO work is even between ranks, by the package's own owners; the docs show what the benchmark computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.journal import Journal
from benchmarks.ranks import MODELS, RESULTS, Item, Measure, Schedule, decoder, table, transformer
from lightning_gluon import partition
from tests.ranks._layouts import qwen, vit


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
@pytest.mark.parametrize("model", ["Qwen2.5-0.5B", "Qwen2.5-7B"])
def test_decoders_are_even(model: str, ranks: int) -> None:
    assert 1 <= Schedule(MODELS[model], ranks).measure().work <= 1.03


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_vit_is_even(ranks: int) -> None:
    assert 1 <= Schedule(MODELS["ViT-S"], ranks).measure().work <= 1.05


def test_one_rank_has_all_the_work() -> None:
    one = Schedule(MODELS["ViT-S"], 1).measure()
    assert (one.work, one.sent, one.together) == (1, 0, 0)
    two = Schedule(MODELS["ViT-S"], 2).measure()
    assert two.seconds == pytest.approx(one.seconds / 2)


def test_bytes_by_hand() -> None:
    """Of two equal matrices on two ranks each sends half of the other's, and gets the half of its own back."""
    model = decoder(8, 16, 0, 8, 3, tied=True)
    twins = type(model)((Item(((8, 8),)),) * 2, 200)
    found = Schedule(twins, 2).measure()
    assert found.sent == 2 * (64 / 2 + 64 / 2)  # 16 bits an entry, to the owner and back
    assert (found.state, found.held) == (400, 6 * 64)


def test_a_team_shares_work_and_sends_gram_matrices() -> None:
    alone, team = (Schedule(MODELS["Qwen2.5-7B"], 256, size).measure() for size in (1, 8))
    assert team.work < 1.05 < 2 < alone.work
    assert alone.together == 0
    long = Item(((8, 32),))
    assert long.team_bytes(2) == (6 + 15) * 4 * 64 / 2


@pytest.mark.parametrize(
    ("network", "model"),
    [(qwen, decoder(32, 50, 2, 16, 97, tied=True)), (vit, transformer(24, 2, others=0))],
    ids=["decoder", "transformer"],
)
def test_shapes_are_those_of_the_partition(network, model) -> None:
    net = network()
    found = [
        tuple(tuple(view.matrix[1:]) for view in route.views)
        for route, parameter in partition(net)
        if route.role == "hidden" and parameter.ndim == 2
    ]
    assert sorted(found) == sorted(item.shapes for item in model.items)
    if network is qwen:
        assert sum(one.numel() for one in net.parameters()) == model.parameters


def test_the_docs_show_the_results() -> None:
    page = Path("docs/many-gpus.md").read_text()
    rows = Journal(RESULTS).latest("run", "model", "ranks", "team")
    found = [(row.pop("model"), Measure(**row)) for row in rows]
    for name in ("Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen2.5-72B"):
        assert table(one for model, one in found if model == name) in page
    for name, one in found:
        if name == "ViT-S":
            assert Schedule(MODELS[name], one.ranks, one.team).measure() == one
