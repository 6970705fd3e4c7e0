"""Output layers that a model names itself."""

from __future__ import annotations

from torch import nn

from lightning_gluon.partition.declared import declared_heads
from lightning_gluon.partition.network import Network
from tests.partition._stand_ins import Attributes, mlp, names_of


class Declares(Attributes):
    def get_classifier(self) -> nn.Module:
        return self.final


class Refuses(Attributes):
    def get_output_embeddings(self) -> nn.Module:
        raise NotImplementedError


def test_a_declared_layer_is_a_head_wherever_it_lies() -> None:
    net = Attributes(model=Declares(final=mlp(), body=mlp(4, 8, 8)))
    assert declared_heads(Network(net)) == {("model", "final", "2"): "get_classifier() of Declares"}
    assert names_of("head", net) == ["model.final.2"]


def test_several_declared_layers() -> None:
    class Two(Attributes):
        def get_output_embeddings(self) -> tuple[nn.Module, ...]:
            return self.one, self.two

    net = Two(body=mlp(), one=nn.Linear(4, 2), two=nn.Linear(4, 3))
    assert names_of("head", net) == ["one", "two"]


def test_a_model_that_cannot_say_is_skipped() -> None:
    assert declared_heads(Network(Refuses(body=mlp()))) == {}
    assert declared_heads(Network(Declares(final=nn.Identity(), body=mlp()))) == {}
