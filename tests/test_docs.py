"""Every Python block of the README runs as it stands, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def blocks() -> list[tuple[int, str]]:
    """Line number and source of every Python block."""
    text = README.read_text()
    return [(text[: found.start(1)].count("\n"), found[1]) for found in BLOCK.finditer(text)]


def test_readme_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    found = blocks()
    assert found
    for line, source in found:
        exec(compile("\n" * line + source, str(README), "exec"), namespace)  # a failure shows the README's own line


def test_readme_links_exist() -> None:
    missing = [path for path in LINK.findall(README.read_text()) if not (README.parent / path).exists()]
    assert missing == []
