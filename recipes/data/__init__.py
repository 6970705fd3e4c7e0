"""Images and text for the recipes: what is read, how it is split, in which order it comes."""

from __future__ import annotations

from recipes.data.images import ImageData
from recipes.data.loader import EpochSampler, ResumableLoader
from recipes.data.text import TextData

__all__ = ["EpochSampler", "ImageData", "ResumableLoader", "TextData"]
