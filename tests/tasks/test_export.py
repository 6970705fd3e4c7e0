"""Models to take away: checkpoints that stand alone, exported folders, answers, as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ThroughputMonitor
from lightning.pytorch.loggers import CSVLogger

from lightning_gluon import tasks
from lightning_gluon.__main__ import main
from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.tasks import (
    CausalLM,
    ChatData,
    ExportBest,
    ImageClassifier,
    ImageData,
    SampleAnswers,
    WriteAnswers,
)
from lightning_gluon.tasks.checkpoints import load_task
from tests.tasks._chat import TINY, save_tokenizer, sums, write_rows

LORA = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained model and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    save_tokenizer(folder)
    torch.manual_seed(0)
    CausalLM("qwen2", TINY).net.save_pretrained(folder)
    return folder


def train(
    folder: Path, base: Path, *callbacks: Any, ckpt: str | None = None, steps: int = 4, **options: Any
) -> Trainer:
    """Fine-tune for some steps, and save every second one."""
    rows = write_rows(folder / "sums.jsonl", sums(40))
    data = ChatData(rows, str(base), val_fraction=0.2, batch_size=4, packing=True, seq_len=64)
    model = CausalLM(str(base), pretrained=True, generation={"max_new_tokens": 4}, **options)
    saver = ModelCheckpoint(folder, save_last=True, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_steps=steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[GluonOptimizer("gluon", lr=0.002), saver, *callbacks],
        **quiet,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return trainer


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def logits(net: Any) -> torch.Tensor:
    with torch.no_grad():
        return net.eval()(input_ids=torch.arange(20)[None]).logits


def test_from_rows_to_answers_in_a_fresh_process(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(base, gone)
    best = ExportBest(str(tmp_path / "best"))
    trainer = train(tmp_path, gone, SampleAnswers(count=2), best)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["step"] for row in answers] == [2, 2, 4, 4]
    assert set(answers[0]) == {"step", "prompt", "answer", "reference"}
    shutil.rmtree(gone)  # neither checkpoint nor export needs where it came from
    capsys.readouterr()
    main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "model")])
    printed = run(f"""
import transformers
net = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r})
tokenizer = transformers.AutoTokenizer.from_pretrained({str(tmp_path / "model")!r})
turns = [{{"role": "user", "content": "1 + 1"}}]
text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)
written = net.generate(**tokens, max_new_tokens=4, do_sample=False)
print(tokenizer.decode(written[0, tokens["input_ids"].shape[1]:], skip_special_tokens=True))
""")
    capsys.readouterr()
    for model in ("model", "last.ckpt"):
        main(["generate", str(tmp_path / model), "1 + 1", "--max_new_tokens", "4"])
        assert capsys.readouterr().out == printed
    trained = trainer.model.net
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(trained), logits(saved))
    ends = transformers.GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id
    assert trainer.datamodule.pretrained_tokenizer.convert_ids_to_tokens(ends) == ["<|end|>", "<|im_end|>"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| hidden | spectral | ema | 0.002 | 1 | 0 |" in card
    assert "| val/token_accuracy | " in card
    assert "path" in card
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "best")
    assert best.best == min(trainer.callback_metrics["val/loss"], best.best)
    assert exported.config.hidden_size == 32


def test_adapters_are_saved_alone_and_merged(tmp_path: Path, base: Path) -> None:
    trainer = train(tmp_path, base, lora=LORA)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]
    assert all("lora_" in key for key in checkpoint["state_dict"])
    module, _ = load_task(str(tmp_path / "last.ckpt"))
    assert torch.equal(logits(module.net), logits(trainer.model.net))
    main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "merged"), "--merge"])
    main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "adapters")])
    merged, adapted = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("merged", "adapters")
    )
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    torch.testing.assert_close(logits(merged), logits(module.net), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(adapted), logits(module.net), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(merged), logits(transformers.AutoModelForCausalLM.from_pretrained(base)))


@pytest.mark.parametrize(
    "options", [{}, {"lora": {**LORA, "use_dora": True}}, {"targets": ["down_proj"]}], ids=["full", "dora", "targets"]
)
def test_resume_in_the_middle_is_exact(tmp_path: Path, base: Path, options: dict[str, Any]) -> None:
    whole = train(tmp_path, base, **options)
    resumed = train(tmp_path, base, ckpt=str(tmp_path / "step=2.ckpt"), **options)
    assert resumed.global_step == 4
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adapters_of_another_base_are_refused(tmp_path: Path, base: Path) -> None:
    train(tmp_path, base, lora=LORA, steps=2)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    CausalLM("qwen2", TINY).net.save_pretrained(other)
    with pytest.raises(ValueError, match=r"the weights that the adapters were trained on, but '.*other' has others"):
        train(tmp_path, other, lora=LORA, ckpt=str(tmp_path / "last.ckpt"))


def test_targets_train_alone(tmp_path: Path, base: Path) -> None:
    model = CausalLM(str(base), pretrained=True, targets=["down_proj"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [f"net.model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)]
    with pytest.raises(ValueError, match=r"names of modules as `targets`, but got 'out_proj'. There are \["):
        CausalLM("qwen2", TINY, targets=["out_proj"])
    with pytest.raises(ValueError, match="`lora` or `targets`, but got both"):
        CausalLM("qwen2", TINY, targets=["down_proj"], lora=LORA)


def test_dtype_and_attention(base: Path) -> None:
    model = CausalLM(str(base), pretrained=True, dtype="bfloat16", attn_implementation="eager", lora=LORA)
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}
    assert model.net.config._attn_implementation == "eager"


def test_predictions_are_written(tmp_path: Path, base: Path) -> None:
    data = ChatData(write_rows(tmp_path / "sums.jsonl", sums(20)), str(base), val_fraction=0.3, batch_size=2)
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        enable_progress_bar=False,
        callbacks=[
            WriteAnswers(str(tmp_path / "a.jsonl")),
            ThroughputMonitor(tasks.count_samples, tasks.count_items, window_size=2),  # as in the recipes
        ],
    )
    model = CausalLM(str(base), pretrained=True, generation={"max_new_tokens": 2})
    model.configure_optimizers = lambda: None  # type: ignore[method-assign]
    trainer.predict(model, datamodule=data)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in rows] == [one.messages[1]["content"] for one in data.held_out]
    assert all(set(row) == {"prompt", "answer", "reference"} for row in rows)


def test_an_image_model_in_a_folder(tmp_path: Path) -> None:
    kwargs = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = ImageClassifier("vit_tiny_patch16_224", num_classes=10, model_kwargs=kwargs)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path,
        callbacks=[GluonOptimizer("gluon", lr=0.01), ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)],
    )  # fmt: skip
    trainer.fit(model, datamodule=ImageData("digits", batch_size=32))
    main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "model")])
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
    assert loaded.pretrained_cfg["mean"] == pytest.approx(trainer.datamodule.mean)
    assert "library_name: timm" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(SystemExit, match=r"a language model, but '.*model' holds an image model of timm"):
        main(["generate", str(tmp_path / "model"), "a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "{}/none.ckpt", "{}/new"],
            r"a checkpoint of CausalLM or ImageClassifier, but '.*none.ckpt' is none",
        ),
        (["export", "{}/other.ckpt", "{}/new"], r"but '.*other.ckpt' is none that can be read \(KeyError\)"),
        (["export", "{}/other.ckpt", "{}"], r"an empty or new folder, but '.*' is not"),
        (["generate", "{}/other.ckpt", "a"], r"but '.*other.ckpt' is none that can be read"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit, match=message):
        main([argument.replace("{}", str(tmp_path)) for argument in arguments])
    assert not (tmp_path / "new").exists()
