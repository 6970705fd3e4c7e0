"""House style for mkdocstrings: a section `Example:` of a docstring is code, as `Examples:` is to griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe


class House(griffe.Extension):
    """Rename the section before docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename it in the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:", "Examples:", obj.docstring.value, flags=re.MULTILINE)
