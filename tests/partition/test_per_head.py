"""Maps of an attention head by head: the right rows in every layout, and what one head reduces to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon, configure_optimizers, partition
from lightning_gluon.norms.views import MatrixView
from tests.partition._stand_ins import Attributes

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

LLAMA: dict[str, Any] = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
TEXT = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=4)
MLA = dict(
    LLAMA, num_key_value_heads=4, q_lora_rank=10, kv_lora_rank=6, qk_rope_head_dim=4, qk_nope_head_dim=3, v_head_dim=5,
    first_k_dense_replace=1, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
)  # fmt: skip
MAMBA2 = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=2)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, dict[tuple[int, int], int]]]] = {
    "grouped queries": (
        "LlamaForCausalLM",
        LLAMA,
        {"self_attn.q_proj": {(4, 16): 4}, "self_attn.k_proj": {(4, 16): 2}, "self_attn.v_proj": {(4, 16): 2},
         "self_attn.o_proj": {(16, 16): 1}, "mlp.gate_proj": {(24, 16): 1}},
    ),
    "grouped queries, wide heads": (
        "Qwen3ForCausalLM",
        dict(LLAMA, head_dim=8),
        {"self_attn.q_proj": {(8, 16): 4}, "self_attn.k_proj": {(8, 16): 2}},
    ),
    "grouped queries, fused": ("Phi3ForCausalLM", dict(LLAMA, pad_token_id=0), {"qkv_proj": {(4, 16): 8}}),
    "grouped queries, fused per key head": (
        "FalconForCausalLM",
        dict(TEXT, num_kv_heads=2, new_decoder_architecture=True),
        {"query_key_value": {(4, 16): 8}},
    ),
    "names of BERT": ("BertModel", dict(TEXT, intermediate_size=24), {"self.query": {(4, 16): 4}}),
    "latent attention": (
        "DeepseekV3ForCausalLM",
        MLA,
        {"q_b_proj": {(7, 10): 4}, "kv_b_proj": {(3, 6): 4, (5, 6): 4}, "q_a_proj": {(10, 16): 1},
         "kv_a_proj_with_mqa": {(6, 16): 1, (4, 16): 1}},
    ),
    "mamba 2": ("Mamba2ForCausalLM", MAMBA2, {"mixer.in_proj": {(8, 16): 8, (4, 16): 5}}),
    "mamba 1": ("MambaForCausalLM", dict(TEXT, state_size=4), {"mixer.in_proj": {(32, 16): 2}}),
}  # fmt: skip


@pytest.mark.parametrize("label", CASES)
def test_heads_of_known_architectures(label: str) -> None:
    kind, config, wanted = CASES[label]
    cls = getattr(transformers, kind)
    with torch.device("meta"):
        net = cls(cls.config_class(**config))
    found = partition(net, strict=False, per_head=True)
    for layer, shapes in wanted.items():
        names = [name for name in found.routes if name.endswith(f"{layer}.weight")]
        assert names and all(dict(Counter(found.views(name))) == shapes for name in names), layer
        apart = found.views(names[0]) != partition(net, strict=False).views(names[0])
        assert found.reason(names[0]).endswith("head by head") == apart


def gathered(views: tuple[MatrixView, ...], weight: Tensor) -> list[Tensor]:
    return [matrix for view in views for matrix in view.gather(weight)]


def test_a_head_has_its_own_rows_in_every_layout() -> None:
    """Four heads of two rows: concatenated, per head, and stored transposed."""
    plain = timm.layers.Attention(8, num_heads=4)
    per_head = transformers.BloomModel(transformers.BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=4))
    stored = transformers.GPT2Model(transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=4))
    plain_rows = plain.qkv.weight.view(3, 4, 2, 8).flatten(0, 1)
    bloom = per_head.h[0].self_attention.query_key_value.weight
    bloom_rows = bloom.view(4, 3, 2, 8).transpose(0, 1).flatten(0, 1)
    gpt2 = stored.h[0].attn.c_attn.weight
    gpt2_rows = gpt2.T.reshape(3, 4, 2, 8).flatten(0, 1)
    for net, weight, rows in (
        (Attributes(attn=plain, head=nn.Linear(8, 2)), plain.qkv.weight, plain_rows),
        (per_head, bloom, bloom_rows),
        (stored, gpt2, gpt2_rows),
    ):
        route = partition(net, per_head=True).find(weight)
        assert route is not None
        found = gathered(route.views, weight)
        assert len(found) == 12 and all(map(torch.equal, found, rows))


def attention(heads: int) -> nn.Module:
    torch.manual_seed(0)
    layers = {"attn": timm.layers.Attention(8, num_heads=heads), "cross": nn.MultiheadAttention(8, heads, kdim=4)}
    return Attributes(**layers, head=nn.Linear(8, 2)).double()


def stepped(net: nn.Module, **options: Any) -> list[Tensor]:
    optimizer = configure_optimizers(net, "muon", lr=0.1, orthogonalizer="svd", **options)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


def test_one_head_is_the_plain_view_bit_for_bit() -> None:
    assert all(map(torch.equal, stepped(attention(1), per_head=True), stepped(attention(1))))
    several = stepped(attention(2), per_head=True), stepped(attention(2))
    assert not all(map(torch.equal, *several))


def test_every_head_steps_as_a_matrix_of_its_own() -> None:
    net = attention(4)
    start = net.attn.qkv.weight.detach().clone()
    end = nn.Module()
    stepped(net, per_head=True)
    end.heads = nn.ParameterList([nn.Parameter(rows.clone()) for rows in start.split(2)])
    optimizer = Gluon([{"params": list(end.heads), "role": "hidden"}], lr=0.1, method="muon", orthogonalizer="svd")
    fused = [p.numel() for p in net.parameters()].index(start.numel())
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in net.parameters()]
        for parameter, rows in zip(end.heads, drawn[fused].split(2), strict=True):
            parameter.grad = rows.clone()
        optimizer.step()
    torch.testing.assert_close(net.attn.qkv.weight.detach(), torch.cat(list(end.heads)).detach(), rtol=0, atol=1e-12)


def test_keys_without_queries_have_no_heads() -> None:
    mixer = Attributes(key=nn.Linear(8, 16), value=nn.Linear(16, 8))
    mixer.num_heads = 4
    net = Attributes(mixer=mixer, head=nn.Linear(8, 2))
    assert partition(net, per_head=True).views("mixer.key.weight") == [(16, 8)]
    mixer.query = nn.Linear(8, 16)
    assert partition(net, per_head=True).views("mixer.key.weight") == [(4, 8)] * 4


def test_heads_and_a_partition_are_not_both_taken() -> None:
    net = attention(2)
    with pytest.raises(ValueError, match="Expected `partition` or `per_head`, but got both"):
        configure_optimizers(net, lr=0.1, partition=partition(net), per_head=True)
