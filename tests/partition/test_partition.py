"""The partition of a module: roles by what a layer is, the user's rules, errors, ties, freezing, the table."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_gluon.norms.views import MatrixView, covers
from lightning_gluon.partition import Partition, Route, partition
from lightning_gluon.roles import ROLES


def roles(module: nn.Module, **options: object) -> dict[str, str]:
    return {name: route.role for name, route in partition(module, **options).routes.items()}


class Attributes(nn.Module):
    """A module whose attributes are the given modules and parameters."""

    def __init__(self, **attributes: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


# ---- plain networks


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


def test_two_maps_in_one_gate() -> None:
    class GEGLU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 12)

    p = partition(nn.Sequential(GEGLU(), nn.Linear(6, 4), nn.Linear(4, 2)))
    assert p.views("0.proj.weight") == [(6, 4), (6, 4)]


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


def test_a_linear_class_of_its_own() -> None:
    class FlexibleLinear(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.weight = parameter(*shape)

    p = partition(Attributes(proj=FlexibleLinear(3, 4, 8), body=nn.Linear(4, 4), lm_heads=FlexibleLinear(3, 9, 4)))
    assert p.role("proj.weight") == "hidden" and p.views("proj.weight") == [(4, 8)] * 3
    assert p.role("lm_heads.weight") == "head" and p.views("lm_heads.weight") == [(9, 4)] * 3


def test_a_configuration_that_refuses_to_answer() -> None:
    """Transformers' configurations whose layers differ raise for an attribute of all layers."""

    class Config:
        @property
        def num_attention_heads(self) -> int:
            raise RuntimeError("ask the layers")

    attention = Attributes(query_key_value=nn.Linear(4, 12))
    attention.config = Config()
    p = partition(Attributes(attention=attention, out=nn.Linear(4, 2)))
    assert p.views("attention.query_key_value.weight") == [(4, 4)] * 3


def test_heads_of_attention_are_no_output_heads() -> None:
    """Teaching code calls the heads of an attention `heads`."""

    def block() -> nn.Module:
        head = lambda: Attributes(key=nn.Linear(4, 2), query=nn.Linear(4, 2), value=nn.Linear(4, 2))  # noqa: E731
        return Attributes(attention=Attributes(heads=nn.ModuleList([head(), head()]), proj=nn.Linear(4, 4)))

    net = Attributes(wte=nn.Embedding(9, 4), blocks=nn.Sequential(block(), block()), lm_head=nn.Linear(4, 9))
    p = partition(net)
    assert {p.role(f"blocks.0.attention.heads.1.{n}.weight") for n in ("key", "query", "value")} == {"hidden"}
    assert p.role("lm_head.weight") == "head" and p.role("wte.weight") == "embedding"


def test_norm_gains_are_biases_whatever_their_shape() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 5, 5]), nn.GroupNorm(2, 4), nn.PReLU(4))
    assert [role for name, role in roles(net).items() if not name.startswith("0.")] == ["bias"] * 5


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


# ---- ties and freezing


def test_a_tied_table_is_one_tensor_with_both_names() -> None:
    net = Attributes(wte=nn.Embedding(9, 4), body=nn.Linear(4, 4), lm_head=nn.Linear(4, 9, bias=False))
    net.lm_head.weight = net.wte.weight
    p = partition(net)
    route = p.route("lm_head.weight")
    assert route is p.route("wte.weight") and route.role == "embedding"
    assert route.names == ("wte.weight", "lm_head.weight") and "lm_head.weight" in p.reason("wte.weight")
    assert p.views("lm_head.weight") == [(9, 4)] and len(p) == 3


def test_the_table_wins_whichever_name_comes_first() -> None:
    net = Attributes(lm_head=nn.Linear(4, 9, bias=False), wte=nn.Embedding(9, 4))
    net.wte.weight = net.lm_head.weight
    assert partition(net).role("lm_head.weight") == "embedding"


def test_frozen_parameters_are_routed_and_counted_but_not_given_out() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    p = partition(net)
    assert [route.name for route, _ in p.parameters()] == ["2.weight", "2.bias"] and len(p) == 2
    assert p.role("0.weight") == "hidden" and p.route("0.weight").frozen
    assert "frozen=2" in repr(p) and "total frozen" in str(p)


def test_a_frozen_array_that_no_rule_fits_does_not_raise() -> None:
    net = Attributes(table=nn.Parameter(torch.zeros(3, 4), requires_grad=False), body=nn.Linear(4, 4))
    assert partition(net).role("table") == "elementwise"


# ---- the interface


def test_every_parameter_is_found_by_name_and_by_identity() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    p = partition(net)
    assert isinstance(p, Partition) and list(p.routes) == [name for name, _ in net.named_parameters()]
    for name, tensor in net.named_parameters():
        route = p.find(tensor)
        assert isinstance(route, Route) and route.name == name and p.parameter(name) is tensor and name in p
        assert route.role in ROLES and route.shape == tuple(tensor.shape) and route.numel == tensor.numel()
        assert not route.views or covers(route.views, route.shape)
    assert p.find(nn.Parameter(torch.zeros(1))) is None and "nothing" not in p
    assert [route.name for route in p.by_role()["bias"]] == ["0.bias", "3.bias"]
    assert [route for route, _ in p] == [route for route, _ in p.parameters()]


def test_routes_are_plain_and_can_be_pickled() -> None:
    route = partition(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).route("0.weight")
    assert pickle.loads(pickle.dumps(route)) == route


def test_nothing_is_run_or_changed_and_meta_is_fine() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10))
    before = {name: (tensor, tensor.requires_grad) for name, tensor in net.named_parameters()}
    assert partition(net).role("2.weight") == "head"
    assert all(before[name] == (tensor, tensor.requires_grad) for name, tensor in net.named_parameters())


def test_the_table_shows_everything_and_merges_blocks() -> None:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)) for _ in range(3)])
    net = Attributes(wte=nn.Embedding(9, 4), blocks=blocks, lm_head=nn.Linear(4, 9, bias=False))
    net.lm_head.weight = net.wte.weight
    text = str(partition(net))
    for part in ("blocks.0-2.0.weight", "wte.weight", "= lm_head.weight", "8x4", "spectral", "lookup table"):
        assert part in text, part
    totals = {line.split("│")[1].strip(): line.split("│")[2:4] for line in text.splitlines() if "total" in line}
    assert [int(tensors) for tensors, _ in totals.values()] == [6, 1, 6, 13]
    assert sum(int(n.replace(",", "")) for _, n in list(totals.values())[:-1]) == sum(
        p.numel() for p in net.parameters()
    )


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = str(partition(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))))
    assert max(map(len, text.splitlines())) <= width


# ---- the user's rules


def net3() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def test_rules_by_glob_type_and_callable_first_match_wins() -> None:
    p = partition(net3(), rules=[("0.*", "embedding"), ("*.weight", "head"), (nn.Linear, "hidden")])
    assert [p.role(f"{i}.weight") for i in (0, 2, 4)] == ["embedding", "head", "head"]
    assert {p.role(f"{i}.bias") for i in (0, 2, 4)} == {"bias"}, "a matrix role leaves vectors alone"
    assert "0.*" in p.reason("0.weight")

    def first(name: str, parameter: nn.Parameter, module: nn.Module) -> str | None:
        assert isinstance(module, nn.Linear) and isinstance(parameter, nn.Parameter)
        return "elementwise" if name.startswith("0") else None

    p = partition(net3(), rules={"*": first})
    assert (p.role("0.weight"), p.role("0.bias"), p.role("2.weight")) == ("elementwise", "elementwise", "hidden")


def test_a_module_type_covers_all_inside_it() -> None:
    class Block(nn.Sequential):
        pass

    p = partition(nn.Sequential(nn.Linear(4, 4), Block(nn.Linear(4, 4), nn.Linear(4, 2))), rules={Block: "elementwise"})
    assert [p.role(n) for n in ("0.weight", "1.0.weight", "1.1.bias")] == ["hidden", "elementwise", "elementwise"]


def test_rules_set_norm_views_and_reason() -> None:
    p = partition(net3(), rules={"2.weight": {"role": "hidden", "norm": "row", "views": (2, 6), "reason": "two maps"}})
    assert p.views("2.weight") == [(2, 8), (6, 8)]
    assert (p.route("2.weight").norm, p.reason("2.weight")) == ("row", "two maps")
    view = MatrixView.whole((8, 8), transposed=True)
    assert partition(net3(), rules={"2.weight": {"role": "hidden", "views": [view]}}).route("2.weight").views == (view,)


def test_an_override_keeps_the_matrices_that_were_found() -> None:
    net = Attributes(attn=nn.MultiheadAttention(4, 2), out=nn.Linear(4, 2))
    p = partition(net, rules={"attn.in_proj_weight": "head"})
    assert p.role("attn.in_proj_weight") == "head" and p.views("attn.in_proj_weight") == [(4, 4)] * 3


def test_a_rule_rescues_an_unknown_parameter() -> None:
    net = Attributes(mixing=parameter(3, 4), body=nn.Linear(4, 4))
    assert partition(net, rules={"mixing": "hidden"}).views("mixing") == [(3, 4)]


# ---- bad input


def test_a_parameter_that_no_rule_fits() -> None:
    net = Attributes(mixing=parameter(3, 4), body=nn.Linear(4, 4))
    with pytest.raises(
        ValueError, match=r"none fits 'mixing' with shape \(3, 4\), a parameter of Attributes.*rules=.*strict=False"
    ):
        partition(net)
    with pytest.warns(UserWarning, match="none fits 'mixing'.*'elementwise'"):
        p = partition(net, strict=False)
    assert p.role("mixing") == "elementwise"


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        (
            {"0.weight": "hiden"},
            ValueError,
            "to be one of hidden, input, embedding, head, bias, elementwise, but got 'hiden'",
        ),
        ({"nowhere.*": "hidden"}, ValueError, r"a name glob matched none: 'nowhere.\*'"),
        ({nn.Conv2d: "hidden"}, ValueError, "a module type matched none: Conv2d"),
        ({3: "hidden"}, TypeError, "a name glob or a torch.nn.Module type, but got 3"),
        ({"0.weight": 3}, TypeError, "a role, a dict with 'role', or a callable, but got 3"),
        ({"0.weight": {"rolle": "head"}}, ValueError, r"have the field 'role'.*but got \['rolle'\]"),
        ({"0.weight": {"norm": "sign"}}, ValueError, r"have the field 'role'.*but got \['norm'\]"),
        (
            {"0.bias": "hidden"},
            ValueError,
            r"at least 2 dimensions for role 'hidden', but got '0.bias' with shape \(8,\)",
        ),
        ({"0.weight": {"role": "hidden", "views": (3, 3)}}, ValueError, r"`views` of '0.weight' with shape \(8, 4\)"),
        ({"0.weight": lambda *_: "hiden"}, ValueError, "but got 'hiden'"),
    ],
)
def test_wrong_rules(rules: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        partition(net3(), rules=rules)


def test_an_empty_module() -> None:
    with pytest.raises(ValueError, match="Expected a module with parameters, but ReLU has none"):
        partition(nn.ReLU())


def test_a_lazy_module() -> None:
    with pytest.raises(ValueError, match=r"'0\.weight' of a lazy module has none yet"):
        partition(nn.Sequential(nn.LazyLinear(3)))


def test_something_else_than_a_module() -> None:
    with pytest.raises(TypeError, match=r"`module` to be a torch\.nn\.Module, but got list"):
        partition([nn.Linear(2, 2)])  # type: ignore[arg-type]


def test_an_unknown_name() -> None:
    p = partition(net3())
    with pytest.raises(KeyError, match=r"got '0.wieght'. Did you mean '0.weight'"):
        p.role("0.wieght")


def test_importing_pulls_in_no_model_library() -> None:
    code = "import lightning_gluon.partition, sys; print([m for m in ('timm', 'transformers') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
