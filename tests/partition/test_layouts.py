"""The matrices of fused weights are the maps of the forward pass: scaling them has the effect that mathematics says.

Attention scores do not change when queries double and keys halve; its output doubles with the values. So a slice that
is one row off shows at once, and nothing here repeats how the slices are found.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gluon.norms.views import covers
from lightning_gluon.partition import Partition, partition
from tests.partition._stand_ins import no_biases_

TOLERANCE = 2e-4  # relative; measured up to 2e-5 in fp32

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")


def scale_(p: Partition, name: str, factors: dict[int, float]) -> None:
    """Scale matrices of a parameter in place: index among the parts -> factor."""
    parameter = p.parameter(name)
    matrices = [(view, index) for view in p.route(name).views for index in range(view.matrix[0])]
    for part, factor in factors.items():
        view, index = matrices[part]
        stack = view.gather(parameter.data).clone()
        stack[index] *= factor
        view.scatter_(parameter.data, stack)


@torch.no_grad()
def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def check_attention(module: nn.Module, forward, name: str, *, values: float | None = 2.0) -> None:
    """Queries x 2 with keys / 2 change nothing, queries alone do, values x 2 scale the output by `values`."""
    no_biases_(module)
    p = partition(module)
    before = forward(module)
    scale_(p, name, {0: 2.0, 1: 0.5})
    assert relative(forward(module), before) < TOLERANCE
    scale_(p, name, {0: 3.0})
    assert relative(forward(module), before) > 10 * TOLERANCE, "the check is blind"
    scale_(p, name, {0: 1 / 6, 1: 2.0})
    if values is not None:
        scale_(p, name, {2: 2.0})
        assert relative(forward(module), values * before) < TOLERANCE


@pytest.mark.parametrize("heads", [2, 4])
def test_timm_attention(heads: int) -> None:
    x = torch.randn(2, 5, 8)
    module = timm.layers.Attention(8, num_heads=heads, qkv_bias=True)
    check_attention(module, lambda m: m(x), "qkv.weight")


def test_timm_attention_in_a_convolution_head_first_and_last() -> None:
    x = torch.randn(2, 8, 3, 3)
    for head_first in (True, False):
        module = timm.layers.Attention2d(8, 8, num_heads=2, head_first=head_first)
        check_attention(module, lambda m: m(x), "qkv.weight")


def test_timm_levit_has_unequal_heads() -> None:
    from timm.models.levit import Attention

    module = Attention(8, 4, num_heads=2, attn_ratio=2.0, resolution=(2, 2))
    x = torch.randn(2, 4, 8)
    check_attention(module, lambda m: m(x), "qkv.linear.weight", values=None)
    assert partition(module).views("qkv.linear.weight") == [(8, 8), (8, 8), (16, 8)]


def test_timm_tiny_vit_and_efficientformer_have_unequal_heads() -> None:
    from timm.models.efficientformer import Attention as Former
    from timm.models.tiny_vit import Attention as Tiny

    x = torch.randn(2, 4, 8)
    check_attention(Former(8, 4, num_heads=2, attn_ratio=2, resolution=2), lambda m: m(x), "qkv.weight")
    check_attention(Tiny(8, 4, num_heads=2, attn_ratio=2, resolution=(2, 2)), lambda m: m(x), "qkv.weight")


def test_timm_linear_attention_normalises_its_scores() -> None:
    from timm.models.efficientvit_mit import LiteMLA

    module = no_biases_(LiteMLA(8, 8, heads=2, dim=4, norm_layer=(None, None)))
    x = torch.randn(2, 8, 3, 3)
    p, before = partition(module), module(x)
    for part, factor, expected in ((0, 2.0, before), (1, 2.0, before), (2, 2.0, 2 * before)):
        scale_(p, "qkv.conv.weight", {part: factor})
        assert relative(module(x), expected) < TOLERANCE
        scale_(p, "qkv.conv.weight", {part: 1 / factor})


def test_timm_pvt_keys_and_values() -> None:
    from timm.models.pvt_v2 import Attention

    module = no_biases_(Attention(8, num_heads=2))
    x = torch.randn(2, 4, 8)
    p, before = partition(module), module(x, (2, 2))
    scale_(p, "q.weight", {0: 2.0})
    scale_(p, "kv.weight", {0: 0.5, 1: 2.0})
    assert relative(module(x, (2, 2)), 2 * before) < TOLERANCE


def test_torch_multihead_attention() -> None:
    x = torch.randn(3, 2, 8)
    check_attention(nn.MultiheadAttention(8, 2), lambda m: m(x, x, x)[0], "in_proj_weight")


def language_model(kind: str, **config) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)).eval()


SMALL = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
FUSED = {
    "gpt2": ("GPT2", dict(vocab_size=16, n_embd=16, n_layer=1, n_head=4), "h.0.attn.c_attn"),
    "bloom": ("Bloom", dict(vocab_size=16, hidden_size=16, n_layer=1, n_head=4), "h.0.self_attention.query_key_value"),
    "gpt-neox": ("GPTNeoX", dict(SMALL, intermediate_size=32), "layers.0.attention.query_key_value"),
    "falcon": (
        "Falcon",
        dict(SMALL, multi_query=False, new_decoder_architecture=False),
        "h.0.self_attention.query_key_value",
    ),
    "falcon multi-query": (
        "Falcon",
        dict(SMALL, multi_query=True, new_decoder_architecture=False),
        "h.0.self_attention.query_key_value",
    ),
    "falcon grouped": (
        "Falcon",
        dict(SMALL, num_kv_heads=2, new_decoder_architecture=True),
        "h.0.self_attention.query_key_value",
    ),
    "persimmon": (
        "Persimmon",
        dict(SMALL, intermediate_size=32, qk_layernorm=False),
        "layers.0.self_attn.query_key_value",
    ),
    "phi3": (
        "Phi3",
        dict(SMALL, intermediate_size=24, num_key_value_heads=2, pad_token_id=0),
        "layers.0.self_attn.qkv_proj",
    ),
    "codegen": ("CodeGen", dict(vocab_size=16, n_embd=32, n_layer=1, n_head=4, rotary_dim=4), "h.0.attn.qkv_proj"),
    "gpt-bigcode": ("GPTBigCode", dict(vocab_size=16, n_embd=16, n_layer=1, n_head=4), "h.0.attn.c_attn"),
    "gpt-bigcode per head": (
        "GPTBigCode",
        dict(vocab_size=16, n_embd=16, n_layer=1, n_head=4, multi_query=False),
        "h.0.attn.c_attn",
    ),
    "mpt": ("Mpt", dict(vocab_size=16, d_model=16, n_layers=1, n_heads=4), "blocks.0.attn.Wqkv"),
    "modernbert": (
        "ModernBert",
        dict(SMALL, intermediate_size=24, pad_token_id=0, cls_token_id=1, sep_token_id=2),
        "layers.0.attn.Wqkv",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FUSED)
def test_fused_attention_of_language_models(kind: str) -> None:
    """Queries, keys and values of a whole model, through its own forward."""
    name, config, layer = FUSED[kind]
    model = language_model(name, **config)
    attention = model.get_submodule(layer.rpartition(".")[0])
    outputs: list[torch.Tensor] = []
    last = attention.dense if kind == "bloom" else attention  # BLOOM's attention adds the residual itself
    last.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter_name == f"{layer}.weight":
            parameter.data = torch.randn(parameter.shape) * 0.5

    def forward() -> torch.Tensor:
        outputs.clear()
        with torch.no_grad():
            model(tokens)
        return outputs[0]

    p = partition(model)
    weight = f"{layer}.weight"
    q, k, v = (0, 2, 1) if kind == "codegen" else (0, 1, 2)
    before = forward()
    assert p.role(weight) == "hidden" and len(p.views(weight)) == 3
    scale_(p, weight, {q: 2.0, k: 0.5})
    assert relative(forward(), before) < TOLERANCE
    scale_(p, weight, {v: 2.0})
    assert relative(forward(), 2 * before) < TOLERANCE
    scale_(p, weight, {q: 4.0})
    assert relative(forward(), 2 * before) > 10 * TOLERANCE


def test_gpt2_conv1d_is_stored_transposed() -> None:
    model = language_model("GPT2", vocab_size=16, n_embd=8, n_layer=1, n_head=2)
    p, x = partition(model), torch.randn(3, 8)
    for name in ("c_fc", "c_proj"):
        layer = model.get_submodule(f"h.0.mlp.{name}")
        x = torch.randn(3, layer.weight.shape[0])
        (view,) = p.route(f"h.0.mlp.{name}.weight").views
        torch.testing.assert_close(layer(x) - layer.bias, x @ view.gather(layer.weight)[0].T)
    assert p.views("h.0.mlp.c_fc.weight") == [(32, 8)]
    assert p.views("h.0.attn.c_attn.weight") == [(8, 8)] * 3


def test_phi3_gate_and_up() -> None:
    """The up half is linear in the output of a gated unit, the gate half is not."""
    model = language_model("Phi3", **SMALL, intermediate_size=24, num_key_value_heads=2, pad_token_id=0)
    mlp = no_biases_(model.layers[0].mlp)
    p, x = partition(model), torch.randn(3, 16)
    before = mlp(x)
    scale_(p, "layers.0.mlp.gate_up_proj.weight", {1: 2.0})
    assert relative(mlp(x), 2 * before) < TOLERANCE
    scale_(p, "layers.0.mlp.gate_up_proj.weight", {0: 2.0})
    assert relative(mlp(x), 4 * before) > 10 * TOLERANCE


def test_timm_packed_gates_cover_both_halves() -> None:
    module = no_biases_(timm.layers.SwiGLUPacked(8, 12))
    p, x = partition(module), torch.randn(3, 8)
    before = module(x)
    linear = 0 if timm.layers.SwiGLUPacked(8, 12).gate_last else 1
    scale_(p, "fc1.weight", {linear: 2.0})
    assert relative(module(x), 2 * before) < TOLERANCE


def test_queries_beside_their_gate() -> None:
    """Qwen3-Next: per head (query, gate). Its queries are normed, so scaling them changes nothing; the gate is not."""
    config = dict(SMALL, num_key_value_heads=2, head_dim=4, intermediate_size=24, num_experts=2, num_experts_per_tok=1)
    config |= {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "layer_types": ["full_attention"]}
    model, tokens = language_model("Qwen3Next", **config), torch.tensor([[3, 1, 4, 1, 5]])
    attention, outputs = model.layers[0].self_attn, []
    attention.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    nn.init.normal_(attention.q_proj.weight, std=2.0)  # above the norm's epsilon
    p, name = partition(model), "layers.0.self_attn.q_proj.weight"
    assert p.views(name) == [(16, 16)] * 2
    with torch.no_grad():
        model(tokens)
        scale_(p, name, {0: 3.0})
        model(tokens)
        scale_(p, name, {1: 0.0})  # an open gate is one half
        model(tokens)
    assert relative(outputs[1], outputs[0]) < TOLERANCE and relative(outputs[2], outputs[0]) > 10 * TOLERANCE


def test_value_and_gate_before_a_depthwise_convolution() -> None:
    """Conformer: the output of its first convolution is linear in the value half."""
    from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerConvolutionModule

    config = transformers.Wav2Vec2ConformerConfig(hidden_size=8, conv_depthwise_kernel_size=3, hidden_act="relu")
    module = no_biases_(Wav2Vec2ConformerConvolutionModule(config))
    p, x = partition(module), torch.randn(1, 5, 8)
    before = module(x)
    scale_(p, "pointwise_conv1.weight", {0: 2.0})
    assert p.views("pointwise_conv1.weight") == [(8, 8)] * 2 and relative(module(x), 2 * before) < TOLERANCE
    scale_(p, "pointwise_conv1.weight", {1: 2.0})
    assert relative(module(x), 4 * before) > 10 * TOLERANCE


def test_an_adaptive_norm_gives_several_vectors() -> None:
    block = nn.ModuleDict({"adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(4, 24)), "out": nn.Linear(4, 4)})
    assert partition(block).views("adaLN_modulation.1.weight") == [(4, 4)] * 6


def test_convolutions_mixed_from_experts() -> None:
    layer = timm.layers.CondConv2d(4, 6, 3, num_experts=3)
    (view,) = partition(layer).route("weight").views
    kernels = view.gather(layer.weight.data)
    torch.testing.assert_close(kernels[1], layer.weight.data[1].view(layer.weight_shape).flatten(1))
    assert view.kernel == 9 and kernels.shape == (3, 6, 36)


def test_mamba_projections() -> None:
    """B x 2 with C / 2 change nothing; without the gate z nothing passes."""
    config = transformers.MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4, time_step_rank=3)
    mixer = no_biases_(transformers.MambaModel(config).layers[0].mixer)
    p, x = partition(mixer), torch.randn(1, 5, 8)
    with torch.no_grad():
        before = mixer(x)
        assert p.views("x_proj.weight") == [(3, 16), (4, 16), (4, 16)] and p.views("in_proj.weight") == [(16, 8)] * 2
        scale_(p, "x_proj.weight", {1: 2.0, 2: 0.5})
        assert relative(mixer(x), before) < TOLERANCE
        scale_(p, "x_proj.weight", {0: 4.0})
        assert relative(mixer(x), before) > 10 * TOLERANCE
        scale_(p, "in_proj.weight", {1: 0.0})
        assert mixer(x).abs().max() == 0


def test_mamba2_projections() -> None:
    config = transformers.Mamba2Config(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=2, expand=2
    )
    mixer = transformers.Mamba2Model(config).eval().layers[0].mixer
    nn.init.zeros_(mixer.conv1d.bias)
    p, x = partition(mixer), torch.randn(1, 5, 16)
    assert p.views("in_proj.weight") == [(32, 16), (32, 16), (8, 16), (8, 16), (4, 16)]
    with torch.no_grad():
        reference = mixer(x)
        scale_(p, "in_proj.weight", {1: 0.0})  # x: nothing is left to mix
        assert mixer(x).abs().max() < 1e-6 < reference.abs().max()


def test_deepseek_latent_attention() -> None:
    config = transformers.DeepseekV3Config(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, q_lora_rank=8,
        kv_lora_rank=6, qk_rope_head_dim=4, qk_nope_head_dim=3, v_head_dim=5,
        first_k_dense_replace=1, intermediate_size=8,
        n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=1,
    )  # fmt: skip
    model = transformers.DeepseekV3Model(config).eval()
    p, tokens = partition(model), torch.tensor([[1, 2, 3, 4]])
    attention, name = model.layers[0].self_attn, "layers.0.self_attn.kv_b_proj.weight"
    outputs: list[torch.Tensor] = []
    attention.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    with torch.no_grad():
        model(tokens)
        scale_(p, name, {1: 2.0})
        model(tokens)
    assert relative(outputs[1], 2 * outputs[0]) < TOLERANCE
    assert p.views(name) == [(6, 6), (10, 6)]
    assert p.views("layers.0.self_attn.kv_a_proj_with_mqa.weight") == [(6, 16), (4, 16)]


def test_xlnet_keeps_its_maps_as_bare_arrays() -> None:
    config = transformers.XLNetConfig(vocab_size=16, d_model=6, n_layer=1, n_head=2, d_inner=8)
    attention = transformers.XLNetModel(config).layer[0].rel_attn
    p, x = partition(attention), torch.randn(3, 6)
    q = p.route("q").views[0].gather(attention.q.data)[0]
    o = p.route("o").views[0].gather(attention.o.data)[0]
    torch.testing.assert_close(torch.einsum("bh,hnd->bnd", x, attention.q).reshape(3, -1), x @ q.T)
    torch.testing.assert_close(torch.einsum("bnd,hnd->bh", x.view(3, 2, 3), attention.o), x @ o.T)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_matrices_over_their_taps(groups: int) -> None:
    conv = nn.Conv2d(4, 6, 3, groups=groups, bias=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.Flatten(), nn.Linear(6, 2))
    (view,) = partition(net).route("1.weight").views
    x = torch.randn(2, 4, 3, 3)
    patches = x.reshape(2, groups, -1, 1)
    torch.testing.assert_close((view.gather(conv.weight) @ patches).reshape(2, 6), conv(x).reshape(2, 6))
    assert view.kernel == 9 and view.matrix == (groups, 6 // groups, 36 // groups)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_too(groups: int) -> None:
    conv = nn.ConvTranspose1d(4, 6, 2, stride=2, groups=groups, bias=False)
    net = nn.Sequential(nn.Linear(4, 4), conv, nn.Linear(6, 2))
    (view,) = partition(net).route("1.weight").views
    x = torch.randn(3, groups, 4 // groups, 1)
    taps = view.gather(conv.weight).reshape(groups, 6 // groups, 4 // groups, 2)
    expected = torch.einsum("goit,bgi->bgot", taps, x[..., 0]).reshape(3, 6, 2)
    torch.testing.assert_close(conv(x.reshape(3, 4, 1)), expected)
    assert covers((view,), tuple(conv.weight.shape))


def test_recurrent_gates() -> None:
    p = partition(nn.ModuleDict({"lstm": nn.LSTM(3, 5, proj_size=2), "gru": nn.GRU(3, 5), "rnn": nn.RNN(3, 5)}))
    assert p.views("lstm.weight_ih_l0") == [(5, 3)] * 4 and p.views("lstm.weight_hr_l0") == [(2, 5)]
    assert p.views("gru.weight_hh_l0") == [(5, 5)] * 3 and p.views("rnn.weight_ih_l0") == [(5, 3)]
    assert p.role("lstm.bias_ih_l0") == "bias"


def test_bilinear_is_one_matrix_per_output() -> None:
    p = partition(nn.ModuleList([nn.Bilinear(3, 4, 5), nn.Linear(5, 2)]))
    assert p.views("0.weight") == [(3, 4)] * 5
