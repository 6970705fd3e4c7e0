"""Output layers: by their names, and by being the last one."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_gluon.partition import partition
from tests.partition._stand_ins import Attributes, roles


def test_an_mlp_is_hidden_but_for_its_last_layer() -> None:
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    assert roles(net) == {
        "0.weight": "hidden", "0.bias": "bias", "2.weight": "hidden", "2.bias": "bias", "4.weight": "head",
        "4.bias": "bias",
    }  # fmt: skip


def test_one_single_layer_is_hidden() -> None:
    assert roles(nn.Linear(3, 4)) == {"weight": "hidden", "bias": "bias"}


def test_an_autoencoder_has_one_output_layer() -> None:
    net = Attributes(
        encoder=nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 3)),
        decoder=nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 784), nn.Sigmoid()),
    )
    found = {name: role for name, role in roles(net).items() if role != "bias"}
    assert found == {
        "encoder.0.weight": "hidden", "encoder.2.weight": "hidden", "decoder.0.weight": "hidden",
        "decoder.2.weight": "head",
    }  # fmt: skip


@pytest.mark.parametrize("after", [nn.ReLU(), nn.LayerNorm(5), nn.GELU()])
def test_a_last_layer_before_an_activation_gives_features(after: nn.Module) -> None:
    assert roles(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), after))["2.weight"] == "hidden"


def test_a_named_head_wins_over_the_last_layer() -> None:
    net = Attributes(
        classifier=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        body=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)),
    )
    heads = [name for name, role in roles(net).items() if role == "head"]
    assert heads == ["classifier.2.weight"]


def test_a_gan_has_two_inputs_and_two_outputs() -> None:
    net = Attributes(
        generator=nn.Sequential(nn.ConvTranspose2d(16, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4), nn.Tanh()),
        discriminator=nn.Sequential(nn.Conv2d(3, 8, 4), nn.ReLU(), nn.Conv2d(8, 8, 4), nn.Flatten(), nn.Linear(8, 1)),
    )
    found = {name: role for name, role in roles(net).items() if role not in {"bias", "hidden"}}
    assert found == {
        "generator.2.weight": "head", "discriminator.0.weight": "input", "discriminator.4.weight": "head",
    }  # fmt: skip


def test_a_stack_of_blocks_without_head_is_a_backbone() -> None:
    block = lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))  # noqa: E731
    assert set(roles(nn.Sequential(block(), block())).values()) == {"hidden", "bias"}
    assert set(roles(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)).values()) == {"hidden", "bias"}


def test_a_head_ends_with_the_part_that_is_named_so() -> None:
    """Registered first, applied last: SAM's feed-forward and UPerNet's decode head."""
    sam = Attributes(proj_in=nn.Linear(4, 4), proj_out=nn.Linear(4, 2), layers=nn.ModuleList([nn.Linear(4, 4)]))
    upernet = Attributes(classifier=nn.Conv2d(8, 5, 1), bottleneck=nn.Conv2d(8, 8, 3))
    named = nn.ModuleDict({"object": nn.Linear(4, 3), "attribute": nn.Linear(4, 6)})
    net = Attributes(
        body=nn.Linear(4, 4), iou_head=sam, decode_head=upernet, answer_head=Attributes(dense=nn.Linear(4, 4), to=named)
    )
    assert [name for name, role in roles(net).items() if role == "head"] == [
        "iou_head.proj_out.weight", "decode_head.classifier.weight", "answer_head.to.object.weight",
        "answer_head.to.attribute.weight",
    ]  # fmt: skip


def test_a_method_called_predictor_is_no_layer_after_the_head() -> None:
    class OwlViT(Attributes):
        def box_predictor(self) -> None:
            pass

    net = OwlViT(body=nn.Linear(4, 4), box_head=nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)))
    assert [name for name, role in roles(net).items() if role == "head"] == ["box_head.2.weight"]


def test_names_of_heads_on_the_input_side_do_not_count() -> None:
    block = lambda: Attributes(hidden_layer=nn.Linear(4, 8), output_layer=nn.Linear(8, 4))  # noqa: E731
    found = roles(Attributes(input_ff_layer=block(), body=nn.Linear(4, 4), horizon_ff_layer=block()))
    assert found["input_ff_layer.output_layer.weight"] == "hidden"
    assert found["horizon_ff_layer.output_layer.weight"] == "head"
    stem = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)])
    net = Attributes(backbone=Attributes(resnet_head=stem, down=nn.Conv2d(8, 8, 3)), head=nn.Conv2d(8, 2, 3))
    assert [role for name, role in roles(net).items() if "bias" not in name] == [
        "input",
        "hidden",
        "hidden",
        "head",
    ]


def test_a_decoder_gives_raw_channels_last() -> None:
    """An autoencoder and a vocoder beside a classifier; the encoder's code of two channels is no output."""
    encoder = Attributes(conv_in=nn.Conv1d(1, 8, 3), conv_out=nn.Conv1d(8, 2, 3))
    decoder = Attributes(conv1=nn.Conv1d(2, 8, 3), conv2=nn.Conv1d(8, 1, 3))
    net = Attributes(encoder=encoder, decoder=decoder, classifier=nn.Linear(8, 3))
    found = {name.removesuffix(".weight"): role for name, role in roles(net).items() if role != "bias"}
    assert found == {
        "encoder.conv_in": "input", "encoder.conv_out": "hidden", "decoder.conv1": "hidden",
        "decoder.conv2": "head", "classifier": "head",
    }  # fmt: skip


def test_heads_of_attention_are_no_output_heads() -> None:
    """Teaching code calls the heads of an attention `heads`."""

    def block() -> nn.Module:
        head = lambda: Attributes(key=nn.Linear(4, 2), query=nn.Linear(4, 2), value=nn.Linear(4, 2))  # noqa: E731
        return Attributes(attention=Attributes(heads=nn.ModuleList([head(), head()]), proj=nn.Linear(4, 4)))

    net = Attributes(wte=nn.Embedding(9, 4), blocks=nn.Sequential(block(), block()), lm_head=nn.Linear(4, 9))
    p = partition(net)
    assert {p.role(f"blocks.0.attention.heads.1.{n}.weight") for n in ("key", "query", "value")} == {"hidden"}
    assert p.role("lm_head.weight") == "head" and p.role("wte.weight") == "embedding"
