"""Metadata that depend on the repository's address, and the recipes inside the wheel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

# The target of a Markdown link that is neither a URL nor an anchor.
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s]+)")
PICTURES = (".png", ".svg")


def absolute(text: str, repository: str) -> str:
    """Return Markdown whose links to files of the repository are URLs.

    Args:
        text: Markdown with relative links.
        repository: The repository's address; empty leaves the links as they are.

    Returns:
        Markdown.

    Example:
        >>> absolute("[docs](docs/start.md)", "https://example.org/owner/name")
        '[docs](https://example.org/owner/name/blob/main/docs/start.md)'
    """
    if not repository:
        return text

    def url(found: re.Match[str]) -> str:
        kind = "raw" if found[1].endswith(PICTURES) else "blob"
        return f"{repository}/{kind}/main/{found[1]}"

    return LINK.sub(url, text)


class Metadata(MetadataHookInterface):
    """URLs and README of the package, from `[tool.hatch.metadata.hooks.custom]` of pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in the dynamic fields.

        Args:
            metadata: The table `project`.
        """
        repository = self.config["repository"].rstrip("/")
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(readme, repository)}
        metadata["urls"] = {}
        if repository:
            changes = f"{repository}/blob/main/CHANGELOG.md"
            metadata["urls"] = {"Repository": repository, "Issues": f"{repository}/issues", "Changelog": changes}


class Recipes(BuildHookInterface):
    """The recipes as data of the package. An editable install reads them from the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the recipes into a wheel.

        Args:
            version: `standard` or `editable`.
            build_data: Instructions of the build.
        """
        if version == "standard":
            build_data["force_include"]["recipes"] = "lightning_gluon/recipes"
