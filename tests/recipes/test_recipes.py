"""The recipes: every configuration parses, every model trains with every method, runs repeat and resume exactly."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_gluon import METHODS, Gluon
from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.cli.fit import GluonCLI
from lightning_gluon.tasks import CausalLM, ImageClassifier, ImageData, TextData
from lightning_gluon.tasks.metrics import Perplexity, count_items, count_samples

RECIPES = Path("recipes")
TASKS = Path("lightning_gluon/tasks")
OVERLAYS = {  # every overlay of a model, with those it is to be used after
    "vit": [(), ("tiny",), ("cifar10",), ("cifar10", "cifar10_hub"), ("folder",), ("limuon_paper",), ("finetune",)],
    "qwen2_5": [
        (),
        ("tiny",),
        ("limuon_paper",),
        ("finetune",),
        ("finetune", "lora"),
        ("tiny", "lora"),
        ("finetune", "chat"),
    ],
    "mamba": [
        (),
        ("tiny",),
        ("limuon_paper",),
        ("finetune",),
        ("finetune", "out_proj"),
        ("finetune", "lora"),
    ],
}
SETTINGS = [(model, overlay) for model, overlays in OVERLAYS.items() for overlay in overlays]
METHOD_FILES = sorted(path.stem for path in (RECIPES / "methods").glob("*.yaml"))
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
LOGGERS = sorted(path.stem for path in (RECIPES / "loggers").glob("*.yaml"))
CALLBACKS = sorted(path.stem for path in (RECIPES / "callbacks").glob("*.yaml"))
STRATEGIES = [("ddp",), ("fsdp2",), ("hsdp",), ("fsdp2", "one_file")]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hide pytest's arguments from the CLI, and keep tokens in one folder for all tests."""
    monkeypatch.setattr(sys, "argv", ["lightning-gluon"])
    monkeypatch.setenv("LIGHTNING_GLUON_CACHE", str(tmp_path_factory.getbasetemp() / "tokens"))


def files(model: str, *names: str, method: str | None = "gluon") -> list[str]:
    """Return the command-line arguments of a model's base with some overlays and a method."""
    paths = [RECIPES / model / f"{name}.yaml" for name in ("base", *names)]
    paths += [RECIPES / "methods" / f"{method}.yaml"] if method else []
    return [part for path in paths for part in ("--config", str(path))]


def fit(tmp_path: Path, arguments: Sequence[str], *options: str) -> GluonCLI:
    """Run `lightning-gluon fit`."""
    place = [f"--trainer.default_root_dir={tmp_path}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GluonCLI(args=["fit", *arguments, *QUIET, *place, *options])


def weights(cli: GluonCLI) -> list[torch.Tensor]:
    return [p.detach() for p in cli.model.parameters()]


# ---------------------------------------------------------------------------------------------------------------- YAML


class Parse(GluonCLI):
    """Parse, build nothing."""

    def instantiate_classes(self) -> None:
        return


@pytest.fixture(scope="module")
def parser() -> Any:
    sys_argv, sys.argv = sys.argv, ["lightning-gluon"]
    try:
        return Parse(args=files("vit"), run=False, save_config_callback=None).parser
    finally:
        sys.argv = sys_argv


def test_every_file_is_listed_here() -> None:
    listed = {f"{m}/{name}" for m, overlay in SETTINGS for name in ("base", *overlay)}
    found = {p.relative_to(RECIPES).with_suffix("").as_posix() for p in RECIPES.rglob("*.yaml")}
    listed |= {f"methods/{m}" for m in METHOD_FILES} | {f"loggers/{name}" for name in LOGGERS}
    listed |= {f"callbacks/{name}" for name in CALLBACKS}
    assert found == listed | {f"strategies/{name}" for names in STRATEGIES for name in names}


def test_every_method_has_an_overlay() -> None:
    used = {
        yaml.safe_load((RECIPES / "methods" / f"{m}.yaml").read_text())["optimizer"]["method"] for m in METHOD_FILES
    }
    assert used == set(METHODS)  # a new row of the table wants a file of two lines in methods/


def test_every_combination_parses(parser: Any) -> None:
    """A method's file sets the optimizer, an overlay all else: every overlay with one, every method with a base."""
    pairs = [(model, overlay, "gluon") for model, overlay in SETTINGS]
    pairs += [(model, (), method) for model in OVERLAYS for method in METHOD_FILES]
    for model, overlay, method in pairs:
        config = parser.parse_args(files(model, *overlay, method=method))
        assert config.optimizer.lr == "auto" or config.optimizer.lr > 0
        assert config.optimizer.schedule == ("theory" if method == "gluon-theory" else "cosine")
        assert len(config.trainer.callbacks) == (5 if "chat" in overlay else 4)
    assert len(pairs) == 20 + 3 * len(METHOD_FILES)
    for model, overlay in SETTINGS:
        last = yaml.safe_load((RECIPES / model / f"{(overlay or ('base',))[-1]}.yaml").read_text())
        assert overlay == () or "optimizer" not in last
    for logger in LOGGERS:
        arguments = ["--config", str(RECIPES / "loggers" / f"{logger}.yaml")]
        assert parser.parse_args([*files("vit"), *arguments]).trainer.logger.init_args.save_dir == "runs"


@pytest.mark.parametrize("model", ["vit", "qwen2_5"])
def test_every_strategy_parses(parser: Any, model: str) -> None:
    for names in STRATEGIES:
        paths = [str(RECIPES / "strategies" / f"{name}.yaml") for name in names]
        config = parser.parse_args([*files(model), *[part for path in paths for part in ("--config", path)]])
        strategy = config.trainer.strategy
        if names == ("ddp",):
            assert strategy == "ddp"
        else:
            assert strategy.init_args.data_parallel_size == config.trainer.devices
            assert strategy.init_args.save_distributed_checkpoint == ("one_file" not in names)


@pytest.mark.parametrize(
    ("model", "parameters"), [("qwen2_5", 494_032_768), ("mamba", 129_135_360), ("vit", 21_330_058)]
)
def test_base_is_the_real_size(parser: Any, model: str, parameters: int) -> None:
    with torch.device("meta"):
        module = parser.instantiate_classes(parser.parse_args(files(model))).model
    assert sum(p.numel() for p in module.parameters()) == parameters


# ----------------------------------------------------------------------------------------------------- model x method


@pytest.mark.parametrize("method", METHOD_FILES)
@pytest.mark.parametrize("model", sorted(OVERLAYS))
def test_two_steps(tmp_path: Path, model: str, method: str) -> None:
    arguments = [*files(model, "tiny", method=method), "--trainer.fast_dev_run=2", *QUIET]
    arguments += [f"--trainer.default_root_dir={tmp_path}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = GluonCLI(args=arguments, run=False)  # builds one parser instead of one per subcommand
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    optimizer = cli.trainer.optimizers[0]
    assert isinstance(optimizer, Gluon)
    assert cli.trainer.global_step == 2
    assert not list(tmp_path.iterdir())  # a trial run leaves nothing behind
    assert cli.trainer.callback_metrics["val/loss"].isfinite()
    assert optimizer.gradient_evaluations == (3 if optimizer.reference_point == "previous" else 2)


def test_lora_adapters_are_factors_of_a_product(tmp_path: Path) -> None:
    cli = fit(tmp_path, files("qwen2_5", "tiny", "lora"), "--trainer.fast_dev_run=2")
    groups = {g["role"]: g["param_names"] for g in cli.trainer.optimizers[0].param_groups}
    assert list(groups) == ["adapter"]
    assert all("lora_" in name for name in groups["adapter"])
    assert len(groups["adapter"]) == 2 * 7 * 2  # A and B of seven linear layers in two blocks


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


# ----------------------------------------------------------------------------------------------- under a stock Trainer


def recipe(model: str) -> tuple[Any, Any]:
    """Return the tiny module and data of a recipe."""
    parts: dict[str, dict[str, Any]] = {"model": {}, "data": {}}
    for name in ("base", "tiny"):
        content = yaml.safe_load((RECIPES / model / f"{name}.yaml").read_text())
        for part, arguments in parts.items():
            arguments.update(content.get(part, {}).get("init_args", {}))
    modules = {"vit": (ImageClassifier, ImageData), "qwen2_5": (CausalLM, TextData)}
    cls, data = modules[model]
    return cls(**parts["model"]), data(**parts["data"])


def stock_trainer(*callbacks: Any) -> Trainer:
    return Trainer(fast_dev_run=2, accelerator="cpu", callbacks=list(callbacks), enable_progress_bar=False)


@pytest.mark.parametrize("model", ["vit", "qwen2_5"])
def test_a_stock_trainer_with_the_optimizer_as_a_callback(model: str) -> None:
    module, data = recipe(model)
    before = [p.detach().clone() for p in module.parameters()]
    trainer = stock_trainer(GluonOptimizer("gluon", lr=0.02))
    trainer.fit(module, datamodule=data)
    assert isinstance(trainer.optimizers[0], Gluon)
    assert trainer.global_step == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    trainer.validate(module, datamodule=data)


def test_a_stock_trainer_without_an_optimizer() -> None:
    module, data = recipe("vit")
    for callbacks in ((), (GluonOptimizer("gluon"),)):
        with pytest.raises(MisconfigurationException, match="No `configure_optimizers"):
            stock_trainer(*callbacks).fit(module, datamodule=data)


# ------------------------------------------------------------------------------------------------- runs and their files


@pytest.mark.parametrize("model", ["vit", "qwen2_5"])
def test_a_seed_is_a_run(tmp_path: Path, model: str) -> None:
    options = ["--trainer.max_steps=4", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1"]
    options += ["--trainer.val_check_interval=2"]
    runs = [
        fit(tmp_path / str(i), files(model, "tiny"), *options, f"--seed_everything={s}")
        for i, s in enumerate([1, 1, 2])
    ]
    first, same, other = map(weights, runs)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1"])
@pytest.mark.parametrize("model", ["vit", "qwen2_5"])
def test_resume_inside_an_epoch_is_exact(tmp_path: Path, model: str, method: str) -> None:
    options = ["--trainer.max_steps=6", "--trainer.limit_val_batches=1", "--trainer.val_check_interval=3"]
    saver = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path), "filename": "at-{step}"}}
    saver["init_args"].update({"every_n_train_steps": 4, "save_top_k": -1})  # type: ignore[attr-defined]
    options += [f"--trainer.callbacks+={yaml.safe_dump(saver, default_flow_style=True).strip()}"]
    arguments = files(model, "tiny", method=method)
    whole = fit(tmp_path / "whole", arguments, *options)
    resumed = fit(tmp_path / "resumed", arguments, *options, f"--ckpt_path={tmp_path / 'at-step=4.ckpt'}")
    assert resumed.trainer.global_step == 6
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_run_leaves_its_config_logs_and_checkpoints(tmp_path: Path) -> None:
    options = ["--trainer.max_steps=12", "--trainer.limit_val_batches=2", "--trainer.log_every_n_steps=2"]
    logger = ["--config", str(RECIPES / "loggers" / "csv.yaml"), f"--trainer.logger.init_args.save_dir={tmp_path}"]
    cli = fit(tmp_path, [*files("qwen2_5", "tiny"), *logger], *options, "--trainer.val_check_interval=12")
    folder = Path(cli.trainer.log_dir or "")
    assert yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["method"] == "gluon"
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/loss", "val/perplexity", "gluon/hidden"} <= set(header)
    assert {"train/device/items_per_sec", "train/device/flops_per_sec"} <= set(header)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["last.ckpt", "step=12.ckpt"]
    loaded = CausalLM.load_from_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=False)
    assert torch.equal(weights(cli)[0], next(loaded.parameters()))
    metrics = cli.trainer.callback_metrics
    assert metrics["val/perplexity"].item() == pytest.approx(metrics["val/loss"].exp().item(), rel=1e-4)


def test_tensorboard_is_the_default(tmp_path: Path) -> None:
    cli = fit(tmp_path, files("vit", "tiny"), "--trainer.max_steps=1", "--trainer.limit_val_batches=1")
    assert list(Path(cli.trainer.log_dir or "").glob("events.out.tfevents*"))


# ------------------------------------------------------------------------------------------------------------- metrics


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


# ----------------------------------------------------------------------------------------------------------- bad input


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


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("qwen2_5", "finetune"), (), ConnectionError, r"^Expected to load 'Qwen/Qwen2.5-0.5B' .*source='python'\.$"),
        (("vit", "tiny"), ("--model.init_args.name=vit_tinyy",), ValueError, r"^Expected `name` to be a model of timm"),
        (("vit", "cifar10"), ("--data.init_args.path=null",), ValueError, r"^Expected `path` with source='parquet'"),
    ],
)
def test_the_command_says_what_the_model_or_data_says(
    tmp_path: Path, arguments: tuple[str, ...], options: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        fit(tmp_path, files(*arguments), *options)


def test_a_vocabulary_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hold the tokenizer's 600 tokens, but it has 512"):
        fit(tmp_path, files("qwen2_5", "tiny"), "--data.init_args.vocab_size=600", "--trainer.fast_dev_run=1")


def test_classes_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`num_classes` >= the data's 10 classes, but got num_classes=4"):
        fit(tmp_path, files("vit", "tiny"), "--model.init_args.num_classes=4", "--trainer.fast_dev_run=1")


def test_mambapy_in_bf16(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision 'bf16-mixed' or '32-true' with mambapy"):
        fit(tmp_path, files("mamba", "tiny"), "--trainer.precision=bf16-true", "--trainer.fast_dev_run=1")


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"net.x": torch.zeros(1)}, "pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0},
        tmp_path / "other.ckpt",
    )
    with pytest.raises((RuntimeError, KeyError), match=r"Missing key|loops"):
        fit(tmp_path, files("vit", "tiny"), "--trainer.max_steps=1", f"--ckpt_path={tmp_path / 'other.ckpt'}")


def test_a_checkpoint_of_another_recipe_or_method(tmp_path: Path) -> None:
    steps = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1"]
    cli = fit(tmp_path, files("vit", "tiny"), *steps, "--trainer.val_check_interval=2")
    saved = Path(cli.trainer.log_dir or "") / "checkpoints" / "last.ckpt"
    with pytest.raises(
        ValueError,
        match=r"checkpoint of .*tasks.CausalLM, but .*last.ckpt' is one of .*tasks.ImageC",
    ):
        fit(tmp_path, files("qwen2_5", "tiny"), f"--ckpt_path={saved}")
    with pytest.raises(ValueError, match=r"of group 'hidden' is of estimator 'ema', .* 'nesterov' there. Resume with"):
        fit(tmp_path, files("vit", "tiny", method="muon"), f"--ckpt_path={saved}", "--trainer.max_steps=4")


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.parametrize("method", METHOD_FILES)
@pytest.mark.parametrize("model", sorted(OVERLAYS))
def test_tiny_recipes_learn(tmp_path: Path, model: str, method: str) -> None:
    """The validation loss ends a margin (nats) below that of a uniform guess."""
    steps = ["--trainer.max_epochs=25"] if model == "vit" else ["--trainer.max_steps=200"]
    cli = fit(tmp_path, files(model, "tiny", method=method), *steps, "--trainer.logger=true")
    first = torch.tensor(10.0 if model == "vit" else 512.0).log()
    assert cli.trainer.callback_metrics["val/loss"] < first - (0.1 if model == "vit" else 0.5)
