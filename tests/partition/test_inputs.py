"""Input layers: by their names, by the channels they read, and by being the first one."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_gluon.partition import partition
from tests.partition._stand_ins import Attributes, roles


def test_a_cnn_reads_pixels_first() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 16, 3, groups=4), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    p = partition(net)
    assert [p.role(f"{i}.weight") for i in (0, 1, 3, 4, 5, 7)] == [
        "input", "bias", "elementwise", "hidden", "hidden", "head",
    ]  # fmt: skip
    assert p.views("0.weight") == [(8, 27)] and p.views("5.weight") == [(4, 36)] * 4 and p.views("3.weight") == []
    assert p.route("5.weight").norm == "conv" and p.route("4.weight").norm == "spectral"


@pytest.mark.parametrize("name", ["input_proj", "embedding", "to_patch_embedding"])
def test_a_linear_layer_that_says_so_reads_the_input(name: str) -> None:
    net = Attributes(
        **{name: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8))}, body=nn.Linear(8, 8), out=nn.Linear(8, 2)
    )
    assert [roles(net)[n] for n in (f"{name}.1.weight", "body.weight", "out.weight")] == ["input", "hidden", "head"]


def test_input_layers_that_are_not_registered_first() -> None:
    net = Attributes(
        body=nn.Linear(8, 8), embed_state=nn.Linear(5, 8), conv2d1=nn.Conv2d(1, 8, 3), conv2d2=nn.Conv2d(8, 8, 3),
        attention=nn.Conv2d(3, 1, 7), out=nn.Linear(8, 2),
    )  # fmt: skip
    assert [name for name, role in roles(net).items() if role == "input"] == [
        "embed_state.weight",
        "conv2d1.weight",
    ]


def test_the_convolutions_after_a_spectrogram_do_not_read_it() -> None:
    layers = nn.ModuleList([nn.Conv1d(80, 16, 5), nn.Conv1d(16, 80, 5)])
    net = Attributes(body=nn.Linear(8, 8), mel_postnet=Attributes(feat_out=nn.Linear(8, 80), layers=layers))
    net.config = type("Config", (), {"num_mel_bins": 80})
    found = [role for name, role in roles(net).items() if "bias" not in name]
    assert found == ["hidden", "head", "hidden", "head"]
