"""The printed table, at any width."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from torch import nn

from lightning_gluon.partition import partition
from tests.partition._stand_ins import Attributes, deep


def test_the_table_shows_everything_and_merges_blocks() -> None:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)) for _ in range(3)])
    net = Attributes(wte=nn.Embedding(9, 4), blocks=blocks, lm_head=nn.Linear(4, 9, bias=False))
    net.lm_head.weight = net.wte.weight
    text = str(partition(net))
    for part in ("blocks.0-2.0.weight", "wte.weight", "= lm_head.weight", "8x4", "spectral", "lookup table"):
        assert part in text, part
    totals = {line.split("│")[1].strip(): line.split("│")[2:4] for line in text.splitlines() if "total" in line}
    assert [int(tensors) for tensors, _ in totals.values()] == [6, 1, 6, 13]
    assert sum(int(n.replace(",", "")) for _, n in list(totals.values())[:-1]) == sum(
        p.numel() for p in net.parameters()
    )


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = str(partition(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))))
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [60, 70, 80, 119])
def test_a_narrow_table_breaks_no_word(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    model = nn.ModuleDict({"encoder": nn.MultiheadAttention(64, 4), "head": nn.Linear(64, 1000)})
    model["head"].requires_grad_(False)
    text = str(partition(model, rules={"encoder.out_proj.*": "elementwise"}))
    assert max(map(len, text.splitlines())) <= width
    words = ("encoder.in_proj_weight", "elementwise", "3x64x64", "(head,", "frozen)", "spectral", "65,000")
    assert [word for word in words if word not in text] == [] and "…" not in text


@pytest.mark.parametrize("width", [20, 50, 80, 120, 160])
def test_no_width_breaks_a_name(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    inner = nn.ModuleDict({"a_projection_with_a_long_name": nn.Linear(4, 4), "gate": nn.Linear(4, 8)})
    model = nn.ModuleDict({"the_encoder_of_the_model": inner, "head": nn.Linear(8, 2)})
    rows = str(partition(model)).splitlines()
    for name, _ in model.named_parameters():
        assert any(re.search(rf"(^|[ │]){re.escape(name)}( |│|$)", row) for row in rows), name


def test_rich_shows_the_table_as_wide_as_its_own_console() -> None:
    out = io.StringIO()
    Console(file=out, width=60).print(partition(deep()))
    assert "linear map between" in out.getvalue() and max(map(len, out.getvalue().splitlines())) <= 60


def test_text_is_text_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "lookup table" in str(partition(nn.ModuleDict({"emb": nn.Embedding(4, 2), "head": nn.Linear(2, 4)})))


def test_brackets_of_a_rule_are_shown_as_they_are() -> None:
    assert "'[a-z0-9]*.weight'" in str(partition(deep(), rules={"[a-z0-9]*.weight": "hidden"}))
