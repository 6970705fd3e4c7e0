"""Training recipes: models x methods, put together on the command line.

`lightning-gluon fit -c recipes/vit/base.yaml -c recipes/methods/gluon.yaml`
"""

from __future__ import annotations

from recipes.data import ImageData, TextData
from recipes.image import ImageClassifier
from recipes.language import CausalLM

__all__ = ["CausalLM", "ImageClassifier", "ImageData", "TextData"]
