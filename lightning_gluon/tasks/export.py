"""Models to take away: a folder that transformers or timm loads, with a card."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_gluon.extras import require
from lightning_gluon.tasks.generate import end_tokens

__all__ = ["card", "export_image_model", "export_language_model", "new_folder"]

# Settings of a group of the optimizer that a card shows.
SETTINGS_SHOWN = ("role", "norm", "estimator", "lr", "radius", "weight_decay")


@contextmanager
def new_folder(folder: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder that gets its name when it is whole.

    Args:
        folder: The name.
        replace: Whether a folder of that name goes when the new one is whole.

    Yields:
        A folder to fill.

    Raises:
        FileExistsError: If there is something of that name.

    Example:
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with new_folder(f"{place}/model") as part:
        ...         _ = (part / "file").write_text("whole")
        ...     (Path(place) / "model" / "file").read_text()
        'whole'
    """
    place = Path(folder)
    if not replace and place.exists() and (place.is_file() or any(place.iterdir())):
        raise FileExistsError(f"Expected an empty or new folder, but '{place}' is not. Remove it or choose another.")
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        yield part
        if place.exists():
            shutil.rmtree(place)
        part.chmod(0o755)  # temporary folders are private
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def export_language_model(net: Any, tokenizer: Any, folder: Path, *, merge: bool = False) -> None:
    """Write a causal language model with its tokenizer and the tokens that end an answer.

    Args:
        net: A model of transformers, or one with adapters of peft.
        tokenizer: Its tokenizer; None if there is none.
        folder: An empty folder.
        merge: Whether adapters become part of the weights. Otherwise they are written alone and name their base.

    Raises:
        ValueError: If adapters are to be written alone whose base has no name, or merged into quantised weights.
    """
    adapted = hasattr(net, "merge_and_unload")
    if merge and getattr(net, "is_quantized", False):
        raise ValueError(
            "Expected a base in floating point with `merge`, but this one is quantised. Export the adapters alone, "
            "load them with `peft.AutoPeftModelForCausalLM`, and call its `merge_and_unload`."
        )
    if adapted and merge:
        net = copy.deepcopy(net).merge_and_unload()
    elif adapted and not net.peft_config["default"].base_model_name_or_path:
        raise ValueError("Expected `merge`, since the base of these adapters was not loaded from anywhere.")
    plain = net.get_base_model() if hasattr(net, "get_base_model") else net
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        plain.generation_config.eos_token_id = end_tokens(tokenizer)
        plain.generation_config.pad_token_id = tokenizer.pad_token_id
    net.save_pretrained(folder)
    plain.generation_config.save_pretrained(folder)


def export_image_model(net: Any, folder: Path, **preprocessing: Any) -> None:
    """Write a model of timm, which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    Args:
        net: The model.
        folder: An empty folder.
        **preprocessing: Entries of timm's configuration of inputs: `mean`, `std`, `input_size`.
    """
    arguments = preprocessing.pop("model_args", {})
    described = {"pretrained_cfg": preprocessing, "num_classes": net.num_classes}
    timm = require("timm")
    timm.models.save_for_hf(net, folder, model_config=described, model_args=arguments, safe_serialization=True)


def card(title: str, notes: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], *, library: str) -> str:
    """Return a model card: what was trained, how, on what, and how well it did.

    Args:
        title: Name of the architecture or of the base model.
        notes: Of `task_notes`.
        groups: Groups of the optimizer, with `role`, `lr` and `radius`.
        library: `transformers` or `timm`.

    Returns:
        Markdown.

    Example:
        >>> text = card("qwen2", {"data": {"path": "a"}, "metrics": {"val/loss": 1.5}}, [], library="transformers")
        >>> "| val/loss | 1.5 |" in text
        True
    """
    parts = [f"{key} {value}" for key, value in notes.get("data", {}).items()]
    data = ", ".join(parts)
    steps = notes.get("step", "an unknown number of")
    metrics = [pair for pair in sorted(notes.get("metrics", {}).items()) if not pair[0].startswith("gluon/")]
    settings = [[_setting(group, name) for name in SETTINGS_SHOWN] for group in groups]
    lines = [
        *("---", f"library_name: {library}", "tags: [lightning-gluon]", "---", ""),
        *(f"# {title}", ""),
        *(f"Trained for {steps} steps with lightning-gluon. Data: {data}.", ""),
        *_table_lines(SETTINGS_SHOWN, settings),
        *_table_lines(("metric", "value"), metrics),
    ]
    return "\n".join(lines)


def _setting(group: Mapping[str, Any], name: str) -> Any:
    """Return a setting of a group: of the learning rate the one that its schedule began with."""
    value = group.get(name)
    return group.get(f"initial_{name}", value)


def _table_lines(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Yield the lines of a table, none if it has no rows."""
    if not rows:
        return
    rule = ["---"] * len(names)
    for row in (names, rule, *rows):
        cells = [_cell(value) for value in row]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)
