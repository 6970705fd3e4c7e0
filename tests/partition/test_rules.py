"""Single rules: tables of relations, rows of adapters, magnitudes, maps of one row."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.nn.utils import prune

from lightning_gluon.partition import partition
from tests.partition._stand_ins import Attributes, mlp, names_of, parameter, roles

# ---- tables


@pytest.mark.parametrize("entities", ["ent_emb", "node_emb", "entity_embedding"])
def test_relations_beside_entities_are_looked_up(entities: str) -> None:
    net = Attributes(**{entities: nn.Embedding(9, 4)}, rel_emb=nn.Embedding(3, 4), score=nn.Linear(4, 1))
    assert names_of("embedding", net) == [entities, "rel_emb"]


def test_relations_in_a_network_of_tables_are_looked_up() -> None:
    assert names_of("embedding", Attributes(things=nn.Embedding(9, 4), rel_emb=nn.Embedding(3, 4))) == [
        "things",
        "rel_emb",
    ]


def test_relative_positions_in_a_network_of_layers_are_no_table() -> None:
    assert roles(Attributes(rel_emb=nn.Embedding(9, 4), body=mlp(4, 4, 4)))["rel_emb.weight"] == "elementwise"


def test_rows_that_replace_those_of_a_table() -> None:
    peft = pytest.importorskip("peft")
    net = Attributes(emb=nn.Embedding(9, 4), out=nn.Linear(4, 2))
    model = peft.get_peft_model(net, peft.TrainableTokensConfig(target_modules=["emb"], token_indices=[1, 2]))
    p = partition(model)
    (name,) = [route.name for route, _ in p]
    assert "trainable_tokens_delta" in name and p.role(name) == "embedding" and p.views(name) == [(2, 4)]


def test_what_produces_prompts_is_no_output() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=8, num_transformer_submodules=1, num_attention_heads=2,
        num_layers=1, encoder_hidden_size=8,
    )  # fmt: skip
    encoder = peft.PromptEncoder(config)
    net = Attributes(base=mlp(8, 8, 8), prompt_encoder=nn.ModuleDict({"default": encoder}), out=nn.Linear(8, 2))
    assert names_of("head", net) == ["out"]
    assert "prompt_encoder.default.mlp_head.4" in names_of("hidden", net)


# ---- reparametrizations


def test_magnitudes_of_any_weight_are_vectors() -> None:
    with pytest.warns(FutureWarning):
        lstm = nn.utils.weight_norm(nn.LSTM(4, 12), "weight_hh_l0")
        attention = nn.utils.weight_norm(nn.MultiheadAttention(12, 2), "in_proj_weight")
    p = partition(Attributes(lstm=lstm, attention=attention, out=nn.Linear(12, 2)))
    assert p.role("lstm.weight_hh_l0_g") == p.role("attention.in_proj_weight_g") == "bias"
    assert p.views("lstm.weight_hh_l0_v") == [(12, 12)] * 4
    assert p.views("attention.in_proj_weight_v") == [(12, 12)] * 3


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0"])
def test_magnitudes_of_the_new_style(name: str) -> None:
    lstm = nn.utils.parametrizations.weight_norm(nn.LSTM(4, 12), name)
    p = partition(lstm)
    assert p.role(f"parametrizations.{name}.original0") == "bias"
    assert p.role(f"parametrizations.{name}.original1") == "hidden"


def test_pruned_weights_keep_their_role() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    prune.identity(net[2], "weight")
    assert roles(net)["2.weight_orig"] == "head"


# ---- one row or one column


def test_a_gate_of_one_row_is_a_vector() -> None:
    net = Attributes(shared_expert_gate=nn.Linear(16, 1), body=mlp(16, 16, 4))
    p = partition(net)
    assert (p.role("shared_expert_gate.weight"), p.views("shared_expert_gate.weight")) == ("bias", [])
    assert "one row or column only" in p.reason("shared_expert_gate.weight")
    assert p.route("shared_expert_gate.weight").norm == "rms"


def test_one_column_and_a_convolution_to_one_channel_are_vectors() -> None:
    net = Attributes(lift=nn.Linear(1, 8), attention=nn.Conv2d(2, 1, 7), body=mlp(8, 8, 4))
    assert names_of("hidden", net) == ["body.0"]


def test_an_output_of_one_feature_stays_a_head() -> None:
    assert names_of("head", nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))) == ["2"]


def test_a_rank_of_one_stays_an_adapter() -> None:
    peft = pytest.importorskip("peft")
    net = peft.get_peft_model(mlp(), peft.LoraConfig(r=1, target_modules=["0"]))
    assert {route.role for route, _ in partition(net)} == {"adapter"}


def mixture(gate: nn.Module, **attributes: Any) -> nn.Module:
    experts = nn.ModuleList([mlp(16, 8, 16) for _ in range(3)])
    block = Attributes(gate=gate, experts=experts)
    for name, value in attributes.items():
        setattr(block, name, value)
    return Attributes(block=block, head=nn.Linear(16, 4))


def test_a_gate_of_two_rows_is_a_map_and_beside_experts_a_router() -> None:
    assert "gate" in names_of("hidden", Attributes(gate=nn.Linear(16, 2), body=mlp(16, 16, 4)))
    net = mixture(nn.Linear(16, 3))
    assert names_of("router", net) == ["block.gate"]
    assert partition(net).reason("block.gate.weight") == "router: linear map to the experts (Linear)"
    assert names_of("router", mixture(Attributes(wg=nn.Linear(16, 3)))) == ["block.gate.wg"]


def test_a_router_of_one_row_is_a_vector() -> None:
    assert roles(mixture(nn.Linear(16, 1)))["block.gate.weight"] == "bias"


def test_a_router_has_a_row_for_every_expert() -> None:
    assert names_of("router", mixture(nn.Linear(16, 3), num_experts=3)) == ["block.gate"]
    assert names_of("router", mixture(nn.Linear(16, 5), num_experts=3)) == []
    other = Attributes(body=mixture(nn.Identity(), up=nn.Linear(16, 3)).block, head=nn.Linear(3, 2))
    assert names_of("router", other) == []


# ---- towers of CLIP


def test_both_towers_of_clip_end_alike() -> None:
    from tests.partition._stand_ins import AttentionPool2d

    visual = Attributes(conv1=nn.Conv2d(3, 16, 3), attnpool=AttentionPool2d())
    net = Attributes(visual=visual, text_projection=parameter(8, 8), positional_embedding=parameter(7, 8))
    assert names_of("head", net) == ["text_projection", "visual.attnpool.c_proj"]


def test_norm_gains_are_biases_whatever_their_shape() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 5, 5]), nn.GroupNorm(2, 4), nn.PReLU(4))
    assert [role for name, role in roles(net).items() if not name.startswith("0.")] == ["bias"] * 5


def test_parametrizations_keep_the_role_of_their_weight() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    with pytest.warns(FutureWarning):
        old = nn.utils.weight_norm(nn.Linear(6, 6))
    p = partition(nn.Sequential(normed, spectral, old, nn.Linear(6, 2)))
    gain, direction = "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"
    assert (p.role(gain), p.role(direction), p.views(direction)) == ("bias", "hidden", [(6, 4)])
    assert p.role("1.parametrizations.weight.original") == "hidden"
    assert (p.role("2.weight_g"), p.role("2.weight_v")) == ("bias", "hidden")
