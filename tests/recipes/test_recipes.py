"""The recipes: every configuration parses, every model trains with every method, runs repeat and resume exactly."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_gluon import METHODS, Gluon
from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.cli.fit import GluonCLI
from lightning_gluon.tasks import CausalLM, ImageClassifier, ImageData, TextData

RECIPES = Path("recipes")
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


# ----------------------------------------------------------------------------------------------------------- bad input


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
