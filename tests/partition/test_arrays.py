"""Bare arrays: maps, tables, and arrays that act entry by entry, by their names."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_gluon.partition import partition
from tests.partition._stand_ins import Attributes, parameter, roles


def test_entities_and_relations_as_bare_arrays() -> None:
    net = Attributes(entity_embedding=parameter(9, 4), relation_embedding=parameter(3, 4))
    assert set(roles(net).values()) == {"embedding"}


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("cls_token", (1, 1, 8), "elementwise"),
        ("class_embedding", (8,), "elementwise"),
        ("register_tokens", (1, 4, 8), "elementwise"),
        ("mask_token", (1, 8), "elementwise"),
        ("pos_embed", (1, 5, 8), "elementwise"),
        ("positional_embedding", (5, 8), "elementwise"),
        ("relative_position_bias_table", (9, 2), "elementwise"),
        ("rel_pos_h", (9, 8), "elementwise"),
        ("attention_biases", (2, 9), "elementwise"),
        ("logit_scale", (), "elementwise"),
        ("temperature", (2, 1, 1), "elementwise"),
        ("A_log", (8, 4), "elementwise"),
        ("A_log", (8,), "elementwise"),
        ("time_decay", (8,), "elementwise"),
        ("D", (8,), "bias"),
        ("dt_bias", (8,), "bias"),
        ("gamma", (8, 1, 1), "bias"),
        ("layer_scale", (4, 8), "bias"),
        ("gate_up_proj_bias", (4, 8), "bias"),
        ("anything", (1, 8), "bias"),
        ("anything", (), "bias"),
    ],
)
def test_bare_arrays_go_by_name(name: str, shape: tuple[int, ...], role: str) -> None:
    net = Attributes(**{name: parameter(*shape)}, body=nn.Linear(8, 8))
    p = partition(net)
    assert p.role(name) == role and p.views(name) == []
    if role == "elementwise":
        assert name in p.reason(name)


def test_relative_positions_under_a_plain_name() -> None:
    """Inkling: a bank of profiles over distances, and gains that only lie in the same module."""
    relative = type("RelativePositionBias", (Attributes,), {})
    p = partition(relative(proj=parameter(4, 9), norm=Attributes(scale=parameter(2, 4)), linear=nn.Linear(8, 4)))
    assert p.role("proj") == "elementwise" and p.role("norm.scale") == "bias"
    rotary = type("RotaryEmbeddingMixed", (Attributes,), {})
    net = Attributes(rope=rotary(freqs=parameter(2, 3, 4)), body=nn.Linear(4, 4))
    assert partition(net).role("rope.freqs") == "elementwise"
