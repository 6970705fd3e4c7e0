"""Modules and data for the usual tasks: image classification with timm, language models of transformers.

The recipes are YAML over these: `lightning-gluon fit -c vit/base -c methods/gluon-nesterov`. They are imported on first
use.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACE_OF = {
    "ChatData": "data.chat",
    "CausalLM": "language",
    "ExportBest": "callbacks",
    "HeadFirst": "finetune",
    "ImageClassifier": "image",
    "ImageData": "data.images",
    "LayerDecay": "finetune",
    "OptimizerFactory": "factory",
    "Perplexity": "metrics",
    "ResumableLoader": "data.loader",
    "SampleAnswers": "callbacks",
    "StartDecay": "finetune",
    "TextData": "data.text",
    "WriteAnswers": "callbacks",
    "count_items": "metrics",
    "count_samples": "metrics",
}

__all__ = [  # noqa: F822 - see __getattr__
    "CausalLM",
    "ChatData",
    "ExportBest",
    "HeadFirst",
    "ImageClassifier",
    "ImageData",
    "LayerDecay",
    "OptimizerFactory",
    "Perplexity",
    "ResumableLoader",
    "SampleAnswers",
    "StartDecay",
    "TextData",
    "WriteAnswers",
    "count_items",
    "count_samples",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACE_OF})
