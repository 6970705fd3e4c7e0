"""Layers that are no subclass of torch's count as layers, and are read as they are stored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gluon.partition import partition
from lightning_gluon.partition.layers import Widths, is_map, is_weight_layer, widths
from tests.partition._stand_ins import (
    Attributes,
    GCNConv,
    GINConv,
    GraphConvolution,
    HeteroLinear,
    RGCNConv,
    SAGEConv,
    names_of,
    parameter,
)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.LSTM])
def test_a_layer_behind_a_recurrent_cell_is_the_last_one(cell: type[nn.Module]) -> None:
    assert names_of("head", Attributes(cell=cell(4, 8), out=nn.Linear(8, 2))) == ["out"]


@pytest.mark.parametrize(
    ("conv", "last"),
    [(GCNConv, ["lin"]), (SAGEConv, ["lin_l", "lin_r"]), (GINConv, ["nn.2"]), (GraphConvolution, [""])],
)
def test_the_last_graph_convolution_gives_the_output(conv: type[nn.Module], last: list[str]) -> None:
    net = Attributes(conv1=conv(8, 16), conv2=conv(16, 4))
    assert names_of("head", net) == [f"conv2.{name}".rstrip(".") for name in last]
    listed = Attributes(convs=nn.ModuleList([conv(8, 16), conv(16, 16), conv(16, 4)]))
    assert names_of("head", listed) == [f"convs.2.{name}".rstrip(".") for name in last]
    named = Attributes(classifier=conv(16, 4), body=nn.Linear(4, 4))
    assert names_of("head", named) == [f"classifier.{name}".rstrip(".") for name in last]


def test_maps_are_read_as_out_times_in() -> None:
    net = Attributes(first=HeteroLinear(3, 4, 8), graph=GraphConvolution(8, 16), out=nn.Linear(16, 2))
    p = partition(net)
    assert p.views("first.weight") == [(8, 4)] * 3 and p.views("graph.weight") == [(16, 8)]
    stored = torch.arange(96.0).view(3, 4, 8)
    (view,) = p.route("first.weight").views
    torch.testing.assert_close(view.gather(stored), stored.mT)
    assert "stored transposed" in p.reason("graph.weight")


def test_a_square_heterogeneous_layer_is_transposed_by_its_class() -> None:
    (view,) = partition(Attributes(first=HeteroLinear(2, 4, 4), out=nn.Linear(4, 2))).route("first.weight").views
    assert not view.is_plain


def test_relations_are_a_stack_of_maps() -> None:
    p = partition(Attributes(conv1=RGCNConv(3, 4, 8), conv2=RGCNConv(3, 8, 5)))
    assert p.views("conv1.weight") == [(8, 4)] * 3 and p.views("conv1.root") == [(8, 4)]
    assert p.role("conv2.weight") == p.role("conv2.root") == "head"


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(3, 4), Widths(3, 4)),
        (nn.Conv2d(3, 4, 5), Widths(3, 4)),
        (nn.ConvTranspose2d(3, 4, 5), Widths(3, 4)),
        (nn.Embedding(9, 4), Widths(None, 4)),
        (nn.LSTM(3, 5, proj_size=2), Widths(3, 2)),
        (nn.GRUCell(3, 5), Widths(3, 5)),
        (nn.MultiheadAttention(6, 2), Widths(6, 6)),
        (GraphConvolution(3, 4), Widths(3, 4)),
        (nn.ReLU(), Widths(None, None)),
    ],
)
def test_widths(module: nn.Module, expected: Widths) -> None:
    assert widths(module) == expected


def test_norms_and_tables_are_no_maps() -> None:
    layers = [nn.Linear(2, 2), nn.Embedding(3, 2), nn.LayerNorm(2), Attributes(weight=parameter(2, 2))]
    assert [is_weight_layer(layer) for layer in layers] == [True, True, False, False]
    assert [is_map(layer) for layer in layers] == [True, False, False, False]


def test_a_layer_under_weight_norm_is_a_layer() -> None:
    assert is_weight_layer(nn.utils.parametrizations.weight_norm(GraphConvolution(3, 4)))
    with pytest.warns(FutureWarning):
        assert is_weight_layer(nn.utils.weight_norm(GraphConvolution(3, 4)))


def test_a_linear_class_of_its_own() -> None:
    class FlexibleLinear(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.weight = parameter(*shape)

    p = partition(Attributes(proj=FlexibleLinear(3, 4, 8), body=nn.Linear(4, 4), lm_heads=FlexibleLinear(3, 9, 4)))
    assert p.role("proj.weight") == "hidden" and p.views("proj.weight") == [(4, 8)] * 3
    assert p.role("lm_heads.weight") == "head" and p.views("lm_heads.weight") == [(9, 4)] * 3
