"""The order of layers where none is seen to run: frozen branches, branches side by side, decoders."""

from __future__ import annotations

import pytest
from torch import nn

from tests.partition._stand_ins import (
    Attributes,
    SAGEConv,
    autoencoder_kl,
    demucs,
    frozen,
    mlp,
    names_of,
    pix2pix,
    vq_model,
)


def convs() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


# ---- what is frozen never decides


@pytest.mark.parametrize("other", [mlp, convs], ids=["teacher", "perceptual"])
def test_a_frozen_network_leaves_the_students_head(other) -> None:
    after = Attributes(student=mlp(), other=frozen(other()))
    before = Attributes(other=frozen(other()), student=mlp())
    assert names_of("head", after) == names_of("head", before) == ["student.2"]


def test_a_head_on_a_frozen_backbone_is_a_head() -> None:
    assert names_of("head", Attributes(backbone=frozen(mlp()), probe=nn.Linear(4, 3))) == ["probe"]


def test_a_frozen_part_of_a_sequence_still_follows() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), frozen(nn.Linear(8, 2)))
    assert names_of("head", net) == ["2"]


def test_a_trained_network_reads_what_the_frozen_one_before_it_reads() -> None:
    def bands() -> nn.Module:
        return nn.Sequential(nn.Conv2d(10, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))

    assert "student.0" in names_of("input", Attributes(teacher=frozen(bands()), student=bands()))
    backbone = frozen(nn.Sequential(nn.Conv2d(10, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    behind = Attributes(backbone=backbone, neck=nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 2)))
    assert "neck.0" not in names_of("input", behind)


def test_a_named_head_of_a_frozen_network_is_not_the_networks_head() -> None:
    teacher = frozen(Attributes(body=mlp(), classifier=nn.Linear(4, 2)))
    net = Attributes(student=Attributes(body=mlp(), teacher=teacher))
    assert names_of("head", net) == ["student.body.2", "student.teacher.classifier"]


# ---- equal layers side by side


def test_equal_heads_in_a_list_are_alike() -> None:
    assert names_of("head", nn.ModuleList([nn.Linear(16, 5) for _ in range(4)])) == ["0", "1", "2", "3"]
    net = Attributes(body=mlp(8, 16, 16), outs=nn.ModuleList([nn.Linear(16, 5), nn.Linear(16, 3)]))
    assert names_of("head", net) == ["outs.0", "outs.1"]


def test_a_chain_in_a_list_has_one_end() -> None:
    chain = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)])
    assert names_of("head", Attributes(layers=chain)) == ["layers.2"]
    square = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    assert names_of("head", Attributes(layers=square)) == ["layers.2"]


@pytest.mark.parametrize("reads", [8, 16, 20])
def test_two_towers_are_alike(reads: int) -> None:
    net = Attributes(user=mlp(10, 16, 8), item=mlp(reads, 16, 8))
    assert names_of("head", net) == (["item.2"] if reads == 8 else ["user.2", "item.2"])
    twins = nn.ModuleDict({"user": mlp(reads, 16, 8), "item": mlp(reads, 16, 8)})
    assert names_of("head", twins) == ["user.2", "item.2"]


def test_two_networks_that_follow_one_another_are_not() -> None:
    assert names_of("head", Attributes(one=mlp(4, 8, 8), two=mlp(8, 16, 8))) == ["two.2"]
    assert names_of("head", Attributes(net1=mlp(8, 8, 8), net2=mlp(8, 8, 8))) == ["net2.2"]
    flat = Attributes(features=nn.Sequential(nn.Conv2d(3, 10, 3)), top=nn.Sequential(nn.Linear(40, 10)))
    assert names_of("head", flat) == ["top.0"]


def test_several_networks_in_a_list_are_alike() -> None:
    assert names_of("head", nn.ModuleList([mlp() for _ in range(3)])) == ["0.2", "1.2", "2.2"]


def test_two_outputs_of_one_body_are_alike() -> None:
    net = Attributes(body=mlp(8, 16, 16), mean=nn.Linear(16, 3), value=nn.Linear(16, 1))
    assert names_of("head", net) == ["mean", "value"]


def test_both_maps_of_a_graph_convolution_are_alike() -> None:
    net = Attributes(conv1=SAGEConv(8, 16), conv2=SAGEConv(16, 4))
    assert names_of("head", net) == ["conv2.lin_l", "conv2.lin_r"]


# ---- registered last is not run last


def test_what_runs_before_the_decoder_is_no_output() -> None:
    assert names_of("head", autoencoder_kl()) == ["decoder.conv_out"]
    assert names_of("input", autoencoder_kl()) == ["encoder.conv_in"]


def test_a_code_of_three_channels_is_no_image() -> None:
    assert names_of("input", vq_model()) == ["encoder.conv_in"]
    assert names_of("head", vq_model()) == ["decoder.conv_out"]


def test_a_bottleneck_registered_last_is_no_output() -> None:
    assert names_of("head", demucs()) == ["decoder.1.2"]


@pytest.mark.parametrize("final_first", [False, True])
def test_a_block_of_a_decoder_beside_a_final_convolution_is_hidden(final_first: bool) -> None:
    net = pix2pix(final_first=final_first)
    assert names_of("head", net) == ["final_conv"] and names_of("input", net) == ["encoders.0.conv"]
    gan = Attributes(generator=net, discriminator=nn.Sequential(nn.Conv2d(6, 4, 4), nn.ReLU(), nn.Conv2d(4, 1, 4)))
    assert names_of("head", gan) == ["generator.final_conv", "discriminator.2"]


def test_a_decoder_registered_before_its_encoder() -> None:
    assert names_of("head", Attributes(decoder=mlp(3, 8, 20), encoder=mlp(20, 8, 3))) == ["decoder.2"]
    decoder = nn.Sequential(nn.ConvTranspose2d(4, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 10, 3))
    encoder = nn.Sequential(nn.Conv2d(10, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    net = Attributes(decoder=decoder, encoder=encoder)
    assert names_of("head", net) == ["decoder.2"] and names_of("input", net) == ["encoder.0"]
