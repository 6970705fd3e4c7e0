"""Fused weights: what the module that holds a layer says of it."""

from __future__ import annotations

from torch import nn

from lightning_gluon.partition import partition
from tests.partition._stand_ins import Attributes


def test_two_maps_in_one_gate() -> None:
    class GEGLU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 12)

    p = partition(nn.Sequential(GEGLU(), nn.Linear(6, 4), nn.Linear(4, 2)))
    assert p.views("0.proj.weight") == [(6, 4), (6, 4)]


def test_a_configuration_that_refuses_to_answer() -> None:
    """Transformers' configurations whose layers differ raise for an attribute of all layers."""

    class Config:
        @property
        def num_attention_heads(self) -> int:
            raise RuntimeError("ask the layers")

    attention = Attributes(query_key_value=nn.Linear(4, 12))
    attention.config = Config()
    p = partition(Attributes(attention=attention, out=nn.Linear(4, 2)))
    assert p.views("attention.query_key_value.weight") == [(4, 4)] * 3
