"""Pages that are made when the site is built: one per method, and files of the repository that stand outside docs/."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import METHODS, Method
from lightning_gluon.norms.table import NORMS

ROOT = Path(__file__).parents[1]
NOTES = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text(encoding="utf-8"))
# Files of the repository that are pages as they are.
COPIES = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "recipes/README.md": "recipes.md",
}
# Folders that one page speaks for.
FOLDERS = {"recipes": "recipes.md", "recipes/": "recipes.md"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
FOLDER = "methods"


def on_config(config: MkDocsConfig) -> None:
    """Fill in the repository's address, if there is one, and navigation to methods and primers."""
    found = re.search(r'^repository = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found and found[1]:
        config.repo_url = found[1]
    primers = sorted((ROOT / "docs" / "primers").glob("*.md"))
    pages = {
        "Methods": [f"{FOLDER}/index.md", *(f"{FOLDER}/{name}.md" for name in METHODS)],
        "Primers": [f"primers/{primer.name}" for primer in primers],
    }
    for entry in config.nav or ():
        for title in entry.keys() & pages.keys():
            entry[title] = pages[title]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the pictures that they show."""
    for source, page in COPIES.items():
        text = relinked((ROOT / source).read_text(encoding="utf-8"), Path(source), page)
        files.append(File.generated(config, page, content=text))
    for name, row in METHODS.items():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=method_page(name, row)))
    files.append(File.generated(config, f"{FOLDER}/index.md", content="\n".join(overview())))
    for picture in (ROOT / "benchmarks" / "results").glob("*.png"):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links to files outside docs/ lead to their pages, or name the file."""
    if page.file.generated_by:
        return markdown
    here = page.file.src_uri
    return relinked(markdown, Path("docs", here), here)


def relinked(text: str, source: Path, page: str) -> str:
    """Return Markdown of a file of the repository with links that hold on the site.

    Args:
        text: The Markdown.
        source: Path of the file in the repository.
        page: Path of its page in docs/.
    """

    def link(found: re.Match[str]) -> str:
        picture, label, target, anchor = found.groups()
        path = os.path.normpath(source.parent / target)
        place = site_path(path)
        if place is None:
            return f"`{path}`" if path.endswith(label.strip("`")) else f"{label} (`{path}`)"
        relative = os.path.relpath(place, Path(page).parent)
        return f"{picture}[{label}]({relative}{anchor or ''})"

    return LINK.sub(link, text)


def site_path(path: str) -> str | None:
    """Return where a file of the repository is on the site; None if it is not there."""
    if path in COPIES or path in FOLDERS:
        return {**COPIES, **FOLDERS}[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("benchmarks/results/") and path.endswith(".png"):
        return f"pictures/{Path(path).name}"
    return None


def overview() -> Iterator[str]:
    """Yield the table of methods."""
    yield "# Methods\n"
    yield "Every method is a norm, an estimator and a radius per role. A page each has the mathematics, and says what"
    yield "is the paper's and what is ours. [How to choose](../choose.md) says which to take.\n"
    yield "| method | what it is | gradients | momentum | source |"
    yield "|---|---|---|---|---|"
    for name, row in METHODS.items():
        yield f"| [`{name}`]({name}.md) | {row.summary} | {gradients(row)} | {row.momentum:g} | {linked(row.source)} |"


def gradients(row: Method) -> int:
    """Return the gradients per step."""
    rows = [(ESTIMATORS[rule.estimator], rule.options) for rule in row.rules.values()]
    return max(estimator.gradients({**estimator.options, **options}) for estimator, options in rows)


def linked(source: str) -> str:
    """Return a source whose arXiv numbers are links."""
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def method_page(name: str, row: Method) -> str:
    """Return the page of a method."""
    return "\n".join(_lines(name, row))


def _lines(name: str, row: Method) -> Iterator[str]:
    notes = NOTES["methods"][name]
    recipe = yaml.safe_load((ROOT / "recipes" / "methods" / f"{name}.yaml").read_text())["optimizer"]
    options = ", ".join(f"{key}={value!r}" for key, value in recipe.items() if key != "method")
    yield f"# `{name}`\n\n{row.summary[0].upper()}{row.summary[1:]}. From: {linked(row.source)}.\n"
    yield "```text"
    yield f"lightning_gluon.configure_optimizers(self, method={name!r}, {options})"
    yield f"lightning-gluon fit -c vit/base -c vit/tiny -c methods/{name}"
    yield "```\n"
    yield "## The step\n"
    yield "    X <- (1 - lr * weight_decay) X - lr * radius[role] * D(M)"
    for estimator in row.estimators:
        yield f"\nEstimator `{estimator}`, with `g` the gradient and `b` the momentum:\n"
        yield from (f"    {line}" for line in NOTES["estimators"][estimator])
    yield "\n| role | norm | scaling | estimator | radius |\n|---|---|---|---|---|"
    for role, rule in row.rules.items():
        yield f"| `{role}` | `{rule.norm}` | {rule.scaling or ''} | `{rule.estimator}` | {rule.radius:g} |"
    yield "\n"
    for norm in row.norms:
        yield f"- `{norm}`: {first_sentence(NORMS[norm].__doc__ or '')}"
    yield "\n| gradients per step | momentum | weight decay | momentum starts at |\n|---|---|---|---|"
    yield f"| {gradients(row)} | {row.momentum:g} | {row.weight_decay:g} | {row.start} |\n"
    yield "## The paper's, and ours\n"
    yield f"**Of the source.** {notes['paper']}\n"
    yield f"**Of this library.** {notes['ours']}\n"
    if gradients(row) > 1:
        yield "Two gradients cost two forward and backward passes. Compare at equal gradient evaluations.\n"
    yield "[All methods](index.md), [how to choose](../choose.md), [momentum](../primers/momentum.md)."


def first_sentence(text: str) -> str:
    """Return the first line of a docstring."""
    return text.strip().splitlines()[0]
