"""Stacks of blocks, raw channels and codes, and what a reason says of its evidence."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gluon.partition.evidence import LayerOrder
from lightning_gluon.partition.network import Network
from tests.partition._stand_ins import Attributes, Runs, demucs, mlp, vq_model


def asks(net: nn.Module, path: str) -> tuple[LayerOrder, object]:
    evidence = LayerOrder(Network(net))
    return evidence, evidence.network.place(f"{path}.weight")


def test_blocks_of_one_class_are_a_stack() -> None:
    evidence, place = asks(nn.Sequential(mlp(4, 8, 4), mlp(4, 8, 4)), "1.2")
    assert evidence.in_stack(place)
    evidence, place = asks(nn.Sequential(mlp(4, 8, 4), nn.Linear(4, 2)), "1")
    assert not evidence.in_stack(place)


def test_the_last_block_of_a_decoder_may_end_otherwise() -> None:
    evidence, place = asks(demucs(), "decoder.1.2")
    assert not evidence.in_stack(place)
    evidence, place = asks(demucs(), "decoder.0.2")
    assert evidence.in_stack(place)


def test_a_decoder_beside_an_encoder_reads_a_code() -> None:
    evidence, place = asks(vq_model(), "decoder.conv_in")
    assert evidence.reads_code(place) and not evidence.reads_raw(place)
    evidence, place = asks(vq_model(), "encoder.conv_in")
    assert evidence.reads_raw(place) and not evidence.reads_code(place)


def test_channels_that_a_configuration_declares_are_raw() -> None:
    net = Attributes(conv=nn.Conv1d(80, 8, 3))
    evidence, place = asks(net, "conv")
    assert not evidence.reads_raw(place)
    net.config = type("Config", (), {"num_mel_bins": 80})
    assert evidence.reads_raw(place)


def test_a_reason_says_what_it_rests_on() -> None:
    assert LayerOrder(Network(mlp())).inferred() == ", inferred from the order of its layers"
    broken = Runs(lambda self, x: self.missing(x), body=mlp())
    reason = LayerOrder(Network(broken), torch.zeros(2, 8)).inferred()
    assert reason.startswith(", inferred from the order of its layers (forward failed on the example: AttributeError")
