"""The commands `lightning-gluon export` and `generate`: a trained model to take away, and its answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gluon.cli.arguments import Arguments
from lightning_gluon.cli.errors import one_line_errors
from lightning_gluon.extras import require

__all__ = ["export", "export_parser", "generate", "generate_parser"]


def export(arguments: Sequence[str]) -> None:
    """Write the model of a checkpoint to a folder that transformers or timm loads.

    Args:
        arguments: Command-line arguments, the command first: a checkpoint, a folder, and perhaps `--merge`.

    Raises:
        SystemExit: If the arguments are wrong, or the checkpoint cannot be exported.
    """
    given = export_parser().parse_args(list(arguments[1:]))
    with one_line_errors():
        _export(given.checkpoint, given.folder, merge=given.merge)
    print(given.folder)


def export_parser() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments(
        "lightning-gluon export", description="Write the model of a checkpoint for transformers or timm."
    )
    parser.add_argument("checkpoint", help="file of a run, such as last.ckpt")
    parser.add_argument("folder", help="new or empty folder")
    parser.add_argument("--merge", action="store_true", help="make adapters part of the weights")
    return parser


def _export(file: str, folder: str, *, merge: bool) -> None:
    from lightning_gluon.tasks.checkpoints import load_task, read_tokenizer
    from lightning_gluon.tasks.export import new_folder

    with new_folder(folder) as part:
        module, checkpoint = load_task(file)
        notes: dict[str, Any] = checkpoint["task"]
        tokenizer = read_tokenizer(notes.get("tokenizer", {}))
        groups = [group for state in checkpoint.get("optimizer_states", ()) for group in state["param_groups"]]
        module.export(part, merge=merge, notes=notes, groups=groups, tokenizer=tokenizer)  # type: ignore[operator]


def generate(arguments: Sequence[str]) -> None:
    """Print the answers of a language model to prompts.

    Args:
        arguments: Command-line arguments, the command first: a checkpoint or a folder, then prompts. Without prompts
            the lines of the standard input are taken.

    Raises:
        SystemExit: If the arguments are wrong, or the model cannot be loaded.
    """
    given = generate_parser().parse_args(list(arguments[1:]))
    with one_line_errors():
        for answer in _answers(given):
            print(answer)


def generate_parser() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments("lightning-gluon generate", description="Print the answers of a language model to prompts.")
    parser.add_argument("model", help="a checkpoint, a folder that was exported, or a hub id")
    parser.add_argument("prompts", nargs="*", help="prompts; without any, the lines of the standard input")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="tokens of an answer at most (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token")
    parser.add_argument("--raw", action="store_true", help="continue the prompts as they are, without a chat template")
    return parser


def _answers(given: Any) -> list[str]:
    from lightning_gluon.tasks.generate import answer

    net, tokenizer = _load_language_model(given.model)
    prompts = given.prompts or [line.rstrip("\n") for line in sys.stdin]
    if not given.raw and tokenizer.chat_template is not None:
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        prompts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in turns]
    options: dict[str, Any] = {"max_new_tokens": given.max_new_tokens}
    if given.temperature:
        options |= {"do_sample": True, "temperature": given.temperature}
    return answer(net, tokenizer, prompts, **options)


def _load_language_model(name: str) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a checkpoint, a folder or a hub id."""
    from lightning_gluon.tasks.checkpoints import load_task, read_tokenizer
    from lightning_gluon.tasks.data.tokenizer import load_pretrained

    if Path(name).is_file():
        module, checkpoint = load_task(name)
        tokenizer = read_tokenizer(checkpoint["task"].get("tokenizer", {}))
        if tokenizer is None:
            raise ValueError(f"Expected a language model with a tokenizer of transformers, but '{name}' holds none.")
        return module.net, tokenizer
    settings = Path(name, "config.json")
    if settings.is_file() and "pretrained_cfg" in json.loads(settings.read_text(encoding="utf-8")):  # timm's own mark
        raise ValueError(f"Expected the folder of a language model, but '{name}' holds an image model of timm.")
    tokenizer = load_pretrained(name)
    auto = require("transformers").AutoModelForCausalLM
    return auto.from_pretrained(name, trust_remote_code=False).eval(), tokenizer
