"""The order of execution from a forward pass on fake tensors, which leaves no trace."""

from __future__ import annotations

import random

import lightning
import pytest
import torch
from torch import nn

from lightning_gluon.partition import partition
from lightning_gluon.partition.execution import execute
from lightning_gluon.partition.network import Network
from tests.partition._stand_ins import Runs, names_of


def backwards(reads: int = 4) -> Runs:
    """A network whose last layer is registered first."""
    return Runs(lambda self, x: self.a(torch.relu(self.b(x))), a=nn.Linear(8, 2), b=nn.Linear(reads, 8))


@pytest.mark.parametrize(
    "batch",
    [torch.zeros(3, 4), (torch.zeros(3, 4),), [torch.zeros(3, 4), torch.zeros(3)], (torch.zeros(3, 4), torch.zeros(3))],
    ids=["tensor", "arguments", "loader", "pair"],
)
def test_the_last_layer_is_the_one_that_runs_last(batch: object) -> None:
    assert names_of("head", backwards()) == ["b"], "by the order of registration"
    assert names_of("head", backwards(), batch=batch) == ["a"]
    assert "forward returns" in partition(backwards(), batch=batch).reason("a.weight")


def test_a_dict_of_keyword_arguments() -> None:
    net = Runs(lambda self, x: self.a(torch.relu(self.b(x))), a=nn.Linear(8, 2), b=nn.Linear(4, 8))
    assert names_of("head", net, batch={"x": torch.zeros(3, 4)}) == ["a"]


def test_a_module_that_keeps_an_example() -> None:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 2), nn.Linear(4, 8)
            self.example_input_array = torch.zeros(2, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(torch.relu(self.b(x)))

    assert names_of("head", Module()) == ["a"]


def test_a_hugging_face_model_keeps_dummy_inputs() -> None:
    net = backwards()
    net.main_input_name, net.dummy_inputs = "x", {"x": torch.zeros(2, 4)}
    assert names_of("head", net) == []  # forward tells that `b` is not the last layer
    net.dummy_inputs = {"input_ids": torch.zeros(2, 4)}
    assert names_of("head", net) == ["b"], "inputs of another kind say nothing"


def test_the_first_convolution_is_the_one_that_reads_the_input() -> None:
    net = Runs(lambda self, x: self.a(torch.relu(self.b(x))), a=nn.Conv2d(8, 8, 3), b=nn.Conv2d(10, 8, 3))
    assert names_of("input", net) == ["a"]
    assert names_of("input", net, batch=torch.zeros(2, 10, 8, 8)) == ["b"]


def test_a_name_that_only_feeds_others_is_no_output() -> None:
    net = Runs(lambda self, x: self.body(self.in_head(x)), in_head=nn.Linear(8, 8), body=nn.Linear(8, 3))
    assert names_of("head", net) == ["in_head"]
    assert names_of("head", net, batch=torch.zeros(2, 8)) == ["body"]


def test_features_of_a_residual_stream_are_no_output() -> None:
    def forward(self: Runs, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        return h + self.b(torch.relu(self.a(h)))

    net = Runs(forward, embed=nn.Linear(8, 8), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    assert names_of("head", net, batch=torch.zeros(2, 8)) == []
    image = Runs(lambda self, x: x + self.b(torch.relu(self.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    assert names_of("head", image, batch=torch.zeros(2, 8)) == ["b"]


@pytest.mark.parametrize("batch", [torch.zeros(2, 5), "text", {"y": 1}, (), None])
def test_a_forward_that_fails_falls_back_and_says_so(batch: object) -> None:
    p = partition(backwards(), batch=batch)
    assert p.role("b.weight") == "head"
    reason = p.reason("b.weight")
    assert "inferred from the order of its layers" in reason
    assert ("forward failed on the example: " in reason) == (batch is not None)


def test_a_value_that_fake_tensors_lack_falls_back() -> None:
    net = Runs(lambda self, x: self.b(x) if x.sum().item() > 0 else self.a(x), a=nn.Linear(4, 2), b=nn.Linear(4, 2))
    assert "DataDependentOutput" in partition(net, batch=torch.ones(2, 4)).reason("b.weight")


def test_nothing_is_left_behind() -> None:
    def forward(self: Runs, x: torch.Tensor) -> torch.Tensor:
        self.cache = x * 2
        self.seen.append(x)
        return self.a(torch.dropout(self.norm(self.b(x)), 0.5, True))

    net = Runs(forward, a=nn.Linear(8, 2), b=nn.Linear(4, 8), norm=nn.BatchNorm1d(8))
    net.seen = []
    net.b.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    execution = execute(net, Network(net).layers, torch.zeros(3, 4))
    assert execution.ran("a") and not execution.failure
    assert not hasattr(net, "cache") and net.seen == []
    assert net.training and not net.b.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_module_on_the_meta_device() -> None:
    with torch.device("meta"):
        net = backwards()
    assert names_of("head", net, batch=torch.zeros(2, 4)) == ["a"]
    assert all(tensor.is_meta for tensor in net.parameters())


def test_recurrent_layers_and_attention_are_seen() -> None:
    def forward(self: Runs, tokens: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.table(tokens))
        return self.out(self.encoder(states).mean(1))

    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = Runs(
        forward,
        out=nn.Linear(8, 3),
        table=nn.Embedding(9, 4),
        lstm=nn.LSTM(4, 8, batch_first=True),
        encoder=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
    )
    execution = execute(net, Network(net).layers, torch.zeros(2, 5, dtype=torch.long))
    assert execution.reads["lstm"] == {"table"} and execution.returned == ({"out"},)
    assert execution.reads_input("table") and execution.gives_output("out")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_models_of_timm_run_and_keep_their_roles(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        net = timm.create_model(name)
    batch = torch.zeros(2, 3, 224, 224)
    execution = execute(net, Network(net).layers, batch)
    assert not execution.failure and len(execution.reads) == len(Network(net).layers)
    assert {name: route.role for name, route in partition(net).routes.items()} == {
        name: route.role for name, route in partition(net, batch=batch).routes.items()
    }


def test_a_compiled_module_runs_as_it_is_written() -> None:
    net = torch.compile(backwards())
    assert names_of("head", net, batch=torch.zeros(2, 4)) == ["_orig_mod.a"]


def test_an_attribute_that_cannot_be_copied_stops_nothing() -> None:
    class Stubborn(dict):
        def __copy__(self) -> None:
            raise RuntimeError("not to be copied")

    net = backwards()
    net.settings = Stubborn(a=1)
    reason = partition(net, batch=torch.zeros(2, 4)).reason("b.weight")
    assert "not to be copied" in reason and net.settings == {"a": 1} and net.training
