"""The tasks' modules: loss, metrics and counts, pretrained weights, and what they say of bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from lightning_gluon.tasks import CausalLM, ImageClassifier
from lightning_gluon.tasks.metrics import Perplexity, count_items, count_samples

RECIPES = Path("recipes")
TASKS = Path("lightning_gluon/tasks")


@pytest.mark.parametrize("model", ["qwen2_5", "mamba", "vit"])
def test_gradient_checkpointing_changes_nothing(model: str) -> None:
    options = yaml.safe_load((RECIPES / model / "tiny.yaml").read_text())["model"]["init_args"]
    base = yaml.safe_load((RECIPES / model / "base.yaml").read_text())["model"]["init_args"]
    cls = ImageClassifier if model == "vit" else CausalLM
    plain, saving = (cls(**{**base, **options, "gradient_checkpointing": on}).train() for on in (False, True))
    saving.load_state_dict(plain.state_dict())
    batch: Any = torch.arange(2 * 65).view(2, 65) % 512
    if model == "vit":
        batch = (torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))
    for module in (plain, saving):
        loss = module.loss(module(batch[0]), batch[1]) if model == "vit" else module.mean_loss(batch)
        loss.backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_chunked_loss_is_the_loss() -> None:
    config = yaml.safe_load((RECIPES / "qwen2_5" / "tiny.yaml").read_text())["model"]["init_args"]["config"]
    whole, chunked = CausalLM("qwen2", config), CausalLM("qwen2", config, loss_chunk=50)
    chunked.load_state_dict(whole.state_dict())
    batch = torch.randint(0, 512, (3, 65))
    losses = [module.mean_loss(batch) for module in (whole, chunked)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for a, b in zip(whole.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": "all-linear"}], ids=["whole", "lora"])
def test_chunked_loss_runs_the_compiled_network(monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: called.append(type(self).__name__))
    config = yaml.safe_load((RECIPES / "qwen2_5" / "tiny.yaml").read_text())["model"]["init_args"]["config"]
    whole = CausalLM("qwen2", config, lora=lora)
    chunked = CausalLM("qwen2", config, lora=lora, loss_chunk=50, compile=True)
    assert called == ["Qwen2Model"]  # what the chunked loss calls, not the whole that it goes around
    chunked.load_state_dict(whole.state_dict())
    batch = torch.randint(0, 512, (3, 65))
    torch.testing.assert_close(whole.mean_loss(batch), chunked.mean_loss(batch))


@pytest.mark.parametrize(("name", "entry"), [("granite", {"logits_scaling": 8.0}), ("gemma2", {}), ("cohere", {})])
def test_chunked_loss_refuses_what_scales_its_logits(name: str, entry: dict[str, float]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"changes them by .* Set model.init_args.loss_chunk"):
        CausalLM(name, {"num_hidden_layers": 1, **entry}, loss_chunk=8)


def test_pretrained_weights_come_in_training_mode(tmp_path: Path) -> None:
    config = yaml.safe_load((RECIPES / "qwen2_5" / "tiny.yaml").read_text())["model"]["init_args"]["config"]
    CausalLM("qwen2", config).net.save_pretrained(tmp_path)
    for lora in (None, {"r": 2, "lora_dropout": 0.5, "target_modules": "all-linear"}):
        model = CausalLM(str(tmp_path), pretrained=True, lora=lora)
        assert all(module.training for module in model.modules())


def test_a_model_of_timm_in_a_folder(tmp_path: Path) -> None:
    saved = timm.create_model("resnet18", num_classes=3)
    timm.models.save_for_hf(saved, tmp_path, safe_serialization=True)
    loaded = ImageClassifier(f"local-dir:{tmp_path}", num_classes=3, pretrained=True)
    assert torch.equal(loaded.net.conv1.weight, saved.conv1.weight)
    assert len(loaded.net.fc.bias) == 3


def test_code_of_the_hub_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose model comes with code of its own is refused at once, without a question on the terminal."""
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for pretrained in (False, True):
        with pytest.raises(ConnectionError, match="trust_remote_code"):
            CausalLM(str(tmp_path), pretrained=pretrained)


def test_every_call_says_that_it_trusts_no_code() -> None:
    loads = re.compile(r"\.(from_pretrained|load_dataset|from_config)\(([^()]|\([^()]*\))*\)")
    found = [call[0] for file in TASKS.rglob("*.py") for call in loads.finditer(file.read_text())]
    assert len(found) == 5  # a configuration or its weights, a model of a configuration, tokenizers, a dataset
    assert all("trust_remote_code=False" in call for call in found)


def test_perplexity_weighs_tokens() -> None:
    metric = Perplexity()
    metric.update(torch.tensor(1.0), weight=30)
    metric.update(torch.tensor(4.0), weight=10)
    assert metric.compute() == pytest.approx(torch.tensor(1.75).exp().item())


def test_perplexity_keeps_its_precision_and_a_loss_that_is_not_a_number() -> None:
    metric = torch.nn.ModuleList([Perplexity()]).to(torch.bfloat16)[0]  # what precision `bf16-true` does
    for _ in range(2):
        for _ in range(500):
            metric.update(torch.tensor(1.2345), weight=777)
        assert metric.compute().item() == pytest.approx(torch.tensor(1.2345).exp().item(), rel=1e-5)
        metric.reset()
    metric.update(torch.tensor(1.0), weight=1)
    metric.update(torch.tensor(torch.nan), weight=1)
    assert metric.compute().isnan()


def test_counts() -> None:
    assert (count_samples(torch.zeros(3, 65)), count_items(torch.zeros(3, 65))) == (3, 192)
    pair = (torch.zeros(5, 1, 8, 8), torch.zeros(5))
    assert (count_samples(pair), count_items(pair)) == (5, 5)


def test_flops_by_hand() -> None:
    model = CausalLM(
        "qwen2", yaml.safe_load((RECIPES / "qwen2_5/tiny.yaml").read_text())["model"]["init_args"]["config"]
    )
    model.mean_loss(torch.zeros(2, 65, dtype=torch.long))
    weights_ = sum(p.numel() for p in model.parameters())
    attention = 12 * 2 * 64 * 64  # layers x width x context
    assert model.flops_per_batch == (6 * weights_ + attention) * 128
    model.eval()
    assert model.flops_per_batch == (6 * weights_ + attention) * 128 // 3

    kwargs = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4}
    image = ImageClassifier("vit_tiny_patch16_224", 10, model_kwargs=kwargs).train()
    image._measure(torch.zeros(3, 1, 8, 8))
    matrices = 17 * 4 * 12 * 64 * 64 + 4 * 2 * 17 * 17 * 64  # tokens x blocks x weights, and the two attention products
    assert image.flops_per_batch / 3 == pytest.approx(3 * 2 * matrices, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: CausalLM("qwen3000"),
            r"a model type of transformers, a hub id or a folder.*Similar model types: \['qwen3",
        ),
        (lambda: CausalLM("vit"), r"a model type for causal language models, but got 'vit'"),
        (
            lambda: CausalLM("qwen2", {"hiden_size": 8}),
            r"entries of Qwen2Config, but got 'hiden_size'. Similar names: hidden_size",
        ),
        (lambda: CausalLM("qwen2", pretrained=True), r"a hub id or a folder with pretrained=true"),
        (lambda: CausalLM("Qwen/Qwen2.5-0.5B"), r"name='qwen2' or 'mamba'.*source='python'"),
        (lambda: CausalLM("qwen2", {"num_hidden_layers": 1}, lora={"rr": 1}), r"arguments of `peft.LoraConfig`"),
        (lambda: ImageClassifier("vit_tinyy"), r"a model of timm, but got 'vit_tinyy'. Similar names"),
        (lambda: ImageClassifier("vit_tiny_patch16_224", model_kwargs={"dept": 1}), r"`model_kwargs` that 'vit_tiny"),
        (lambda: ImageClassifier("vit_tiny_patch16_224", pretrained=True), r"to load 'vit_tiny.*source='digits'"),
        (lambda: ImageClassifier("vit_smal_patch16_224"), r"Similar names: \['vit_small_patch16_224'"),
        (lambda: ImageClassifier("resnet18.a1_in1kk"), r"weights that timm knows.*\['resnet18.a1_in1k'"),
        (
            lambda: ImageClassifier("local-dir:nowhere"),
            r"a folder with a model of timm, but 'local-dir:nowhere' is none",
        ),
        (lambda: ImageClassifier("hfhub:timm/x"), r"a model of timm, but got 'hfhub:timm/x': .*hf-hub, local-dir"),
        (
            lambda: ImageClassifier("timm/resnet18"),
            r"a model of timm, but got 'timm/resnet18': .*'hf-hub:timm/resnet18'",
        ),
        (lambda: ImageClassifier("hf-hub:timm/resnet18.x"), r"to load 'hf-hub:timm/resnet18.x' from the hub"),
        (lambda: ImageClassifier("resnet18", num_classes=0), r"`num_classes` to be a whole number >= 1"),
        (lambda: ImageClassifier("resnet18", label_smoothing=1.5), r"`label_smoothing` to satisfy"),
        (lambda: CausalLM("qwen2", loss_chunk=0), r"`loss_chunk` to be a whole number >= 1"),
    ],
)
def test_bad_models(make: Any, message: str) -> None:
    with torch.device("meta"), pytest.raises((ValueError, OSError), match=message):
        make()
