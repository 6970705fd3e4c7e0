"""The partition of real architectures, on the meta device: every parameter once, the interesting ones as expected."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from torch import nn

from lightning_gluon.norms.views import covers
from lightning_gluon.partition import Partition, Route, partition
from lightning_gluon.partition.finding import OtherFactor
from lightning_gluon.roles import MATRIX_ROLES
from tests.partition.expected.timm_models import TIMM
from tests.partition.expected.transformers_models import LLAMA, MODELS, VISION

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")


def build(kind: str, **config: object) -> nn.Module:
    cls = getattr(transformers, kind)
    with torch.device("meta"):
        return cls(cls.config_class(**config))


def create(name: str, **options: object) -> nn.Module:
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # torch 2.11: no `unique` on meta
        return timm.create_model(name, **options)


@cache
def covered_once(shape: tuple[int, ...], views: tuple) -> bool:
    """Write ones through every view: each entry of the parameter must come out as one."""
    total = torch.zeros(shape, dtype=torch.uint8)
    for view in views:
        part = torch.zeros(shape, dtype=torch.uint8)
        view.scatter_(part, torch.ones(view.matrix, dtype=torch.uint8))
        total += part
    return bool((total == 1).all())


def check_route(route: Route) -> None:
    if route.role not in MATRIX_ROLES:
        assert route.views == (), route
        return
    assert covers(route.views, route.shape) and len(route.shape) > 1 and len(route.reason) < 1000, route
    if route.numel <= 300_000:
        assert covered_once(route.shape, route.views), route


def check(module: nn.Module, expected: dict) -> Partition:
    """Every tensor once, under all its names, read completely; and what is expected of the interesting ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = partition(module)
    tensors: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tensors.setdefault(id(parameter), set()).add(name)
    assert sorted(map(sorted, tensors.values())) == sorted(sorted(route.names) for route in p.routes.values())
    for route in p.routes.values():
        check_route(route)
    for name, wanted in expected.items():
        role, views = (wanted, []) if isinstance(wanted, str) else wanted
        assert (p.role(name), p.views(name)) == (role, views), (name, p.reason(name))
    return p


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    check(create(name), TIMM[name])


@pytest.mark.parametrize("label", MODELS)
def test_transformers(label: str) -> None:
    kind, config, expected = MODELS[label]
    check(build(kind, **config), expected)


def counts(p: Partition) -> dict[str, int]:
    return {role: len(routes) for role, routes in p.by_role().items()}


# ---- the models of the recipes, at full size


def test_qwen2_5_0_5b() -> None:
    model = build(
        "Qwen2ForCausalLM", hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    p = check(model, {"model.layers.23.self_attn.k_proj.weight": ("hidden", [(128, 896)])})
    assert counts(p) == {"hidden": 168, "embedding": 1, "bias": 121}
    assert p.route("lm_head.weight").names == ("model.embed_tokens.weight", "lm_head.weight")
    assert p.views("lm_head.weight") == [(151936, 896)]
    assert sum(r.numel for r in p.by_role()["hidden"]) == 357_826_560
    assert sum(r.numel for r in p.routes.values()) == 494_032_768


def test_mamba_130m() -> None:
    model = build("MambaForCausalLM", vocab_size=50280, hidden_size=768, num_hidden_layers=24, tie_word_embeddings=True)
    layer = "backbone.layers.0.mixer"
    p = check(
        model,
        {
            f"{layer}.A_log": "elementwise",
            f"{layer}.D": "bias",
            f"{layer}.conv1d.weight": "elementwise",
            f"{layer}.in_proj.weight": ("hidden", [(1536, 768)] * 2),
            f"{layer}.x_proj.weight": ("hidden", [(48, 1536), (16, 1536), (16, 1536)]),
            f"{layer}.dt_proj.weight": ("hidden", [(1536, 48)]),
            "lm_head.weight": ("embedding", [(50280, 768)]),
        },
    )
    assert counts(p) == {"hidden": 96, "embedding": 1, "bias": 97, "elementwise": 48}
    assert sum(r.numel for r in p.routes.values()) == 129_135_360


def test_hugging_face_vit_s() -> None:
    model = build(
        "ViTForImageClassification", hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    p = check(model, {"classifier.weight": ("head", [(1000, 384)])})
    assert counts(p) == {"hidden": 72, "input": 1, "head": 1, "bias": 124, "elementwise": 2}
    assert p.views("vit.embeddings.patch_embeddings.projection.weight") == [(384, 768)]


def test_timm_vit_s() -> None:
    p = check(create("vit_small_patch16_224"), {})
    assert counts(p) == {"hidden": 48, "input": 1, "head": 1, "bias": 100, "elementwise": 2}
    assert sum(len(r.matrices) for r in p.by_role()["hidden"]) == 72


# ---- models inside other modules


class Wrapper(nn.Module):
    """What a LightningModule does with a model."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


def test_a_model_at_any_depth() -> None:
    expected = {f"net.inner.{name}": wanted for name, wanted in TIMM["vit_small_patch16_224"].items()}
    check(Wrapper(net=Wrapper(inner=create("vit_small_patch16_224"))), expected)


def test_a_lightning_module() -> None:
    lightning = pytest.importorskip("lightning")

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = create("resnet10t", num_classes=0)
            self.out = nn.Linear(512, 3, device="meta")

    check(Lit(), {"out.weight": ("head", [(3, 512)]), "backbone.conv1.0.weight": ("input", [(24, 27)])})


def test_a_headless_language_model_with_a_head_of_the_users() -> None:
    net = Wrapper(
        net=build("LlamaModel", **LLAMA), regressor=nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    )
    p = partition(net)
    assert [name for name, route in p.routes.items() if route.role == "head"] == ["regressor.2.weight"]


def test_two_models_side_by_side() -> None:
    student = create("vit_tiny_patch16_224", num_classes=10)
    teacher = create("resnet18", num_classes=10).requires_grad_(False)
    p = check(Wrapper(teacher=teacher, student=student), {})
    heads = {name for name, route in p.routes.items() if route.role == "head"}
    assert heads == {"teacher.fc.weight", "student.head.weight"}
    assert {n for n, r in p.routes.items() if r.role == "input"} == {
        "teacher.conv1.weight", "student.patch_embed.proj.weight",
    }  # fmt: skip
    assert all(route.frozen == name.startswith("teacher") for name, route in p.routes.items())


def test_a_compiled_model_keeps_its_roles() -> None:
    model = torch.compile(build("ViTForImageClassification", **VISION))
    assert partition(model).role("_orig_mod.classifier.weight") == "head"


def test_mambapy() -> None:
    mamba = pytest.importorskip("mambapy.mamba")
    p = check(mamba.Mamba(mamba.MambaConfig(d_model=8, n_layers=1, d_state=4, dt_rank=2)), {})
    assert p.views("layers.0.mixer.in_proj.weight") == [(16, 8)] * 2
    assert p.views("layers.0.mixer.x_proj.weight") == [(2, 16), (4, 16), (4, 16)]
    assert p.role("layers.0.mixer.A_log") == p.role("layers.0.mixer.conv1d.weight") == "elementwise"


# ---- adapters


def test_lora() -> None:
    peft = pytest.importorskip("peft")
    model = build("GPT2ForSequenceClassification", vocab_size=40, n_embd=12, n_layer=1, n_head=2, pad_token_id=0)
    config = peft.LoraConfig(r=3, target_modules=["c_attn", "wte"], modules_to_save=["score"], fan_in_fan_out=True)
    p = check(peft.get_peft_model(model, config), {})
    layer = "base_model.model.transformer.h.0.attn.c_attn"
    assert p.views(f"{layer}.lora_A.default.weight") == [(3, 12)]
    assert p.views(f"{layer}.lora_B.default.weight") == [(12, 3)] * 3, "its rows are queries, keys and values"
    pair = p.route(f"{layer}.lora_A.default.weight").pair
    assert pair == OtherFactor(f"{layer}.lora_B.default.weight", 8 / 3, rows=12)
    assert p.route(pair.name).pair == OtherFactor(f"{layer}.lora_A.default.weight", 8 / 3)
    assert p.role(pair.name) == "adapter"
    table = "base_model.model.transformer.wte.lora_embedding"
    assert p.role(f"{table}_A.default") == "embedding" and p.role(f"{table}_B.default") == "hidden"
    trainable = {route.name: route.role for route, _ in p}
    assert trainable["base_model.model.score.modules_to_save.default.weight"] == "head" and len(trainable) == 5
    assert p.route(f"{layer}.base_layer.weight").frozen and p.views(f"{layer}.base_layer.weight") == [(12, 12)] * 3


@pytest.mark.parametrize(
    ("kind", "options"), [("AdaLora", {"total_step": 9}), ("LoHa", {}), ("LoKr", {}), ("Hira", {})]
)
def test_low_rank_adapters_that_keep_bare_arrays(kind: str, options: dict) -> None:
    peft = pytest.importorskip("peft")
    if not hasattr(peft, f"{kind}Config"):
        pytest.skip("an older peft")
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))
    p = check(peft.get_peft_model(model, getattr(peft, f"{kind}Config")(target_modules=["q_proj"], **options)), {})
    factors = [route for route, _ in p if "lora_E" not in route.name]
    assert len(factors) >= 4 and {route.role for route in factors} == {"hidden"}


def test_dora_magnitudes_are_vectors() -> None:
    peft = pytest.importorskip("peft")
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))
    p = check(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)), {})
    assert {r.role for n, r in p.routes.items() if "magnitude" in n} == {"bias"}


# ---- torchvision


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("resnet18", ["conv1"], ["fc"]),
        ("mobilenet_v3_small", ["features.0.0"], ["classifier.3"]),
        ("vit_b_16", ["conv_proj"], ["heads.head"]),
        ("swin_t", ["features.0.0"], ["head"]),
        ("convnext_tiny", ["features.0.0"], ["classifier.2"]),
        ("squeezenet1_0", ["features.0"], ["classifier.1"]),
        ("shufflenet_v2_x0_5", ["conv1.0"], ["fc"]),
    ],
)
def test_torchvision(name: str, inputs: list[str], outputs: list[str]) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        model = models.get_model(name)
    p = check(model, {})
    found = p.by_role()
    assert [route.name for route in found["input"]] == [f"{layer}.weight" for layer in inputs]
    assert [route.name for route in found["head"]] == [f"{layer}.weight" for layer in outputs]


# ---- breadth


@pytest.mark.slow
@pytest.mark.parametrize("family", timm.list_modules())
def test_every_family_of_timm(family: str) -> None:
    """The smallest-named model of each family: no parameter without a rule, one input layer at least."""
    names = sorted(timm.list_models(module=family), key=len)
    if not names:
        pytest.skip("a family without models")
    p = check(create(names[0]), {})
    assert "input" in p.by_role()


@pytest.mark.slow
def test_every_causal_language_model_of_transformers() -> None:
    """Default configurations, cut to a few layers: no parameter without a rule."""
    from transformers.models.auto import configuration_auto, modeling_auto

    unbuilt, unrouted = [], {}
    for kind, name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        try:
            config = getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[kind])()
            with torch.device("meta"):
                model = getattr(transformers, name)(config)
        except Exception:  # a default configuration that builds nothing, or a missing optional library
            unbuilt.append(kind)
            continue
        try:
            check(model, {})
        except (ValueError, AssertionError) as error:
            unrouted[kind] = str(error)[:200]
    assert not unrouted and len(unbuilt) < 60, (unrouted, unbuilt)
