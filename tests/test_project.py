"""What the project declares: bounds of its dependencies, and what its continuous integration may do."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOWS = sorted(Path(".github/workflows").glob("*.yml"))


def dependencies() -> list[str]:
    """Return every requirement of the package and its extras."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_every_dependency_has_a_lower_bound() -> None:
    """Without one, `make test-lowest` would take a version from years ago."""
    unbounded = [one for one in dependencies() if ">=" not in one and not one.startswith("lightning-gluon[")]
    assert unbounded == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_bounds_that_close_a_known_hole() -> None:
    assert {"lightning>=2.6.6", "pyarrow>=14.0.1"} <= set(dependencies())


def test_a_fork_never_releases() -> None:
    workflow = yaml.safe_load(Path(".github/workflows/release.yml").read_text())
    assert set(workflow[True]) == {"push"}, "a pull request of a fork would run it"  # YAML reads the key `on` as true
    assert set(workflow[True]["push"]) == {"tags"}
    for job in workflow["jobs"].values():
        assert job["if"] == "${{ !github.event.repository.fork }}"
    publish = workflow["jobs"]["publish"]
    assert (publish["environment"], publish["needs"]) == ("pypi", "build")
    assert not any("secrets." in str(step) for step in steps(workflow))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_can_read_and_nothing_else(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert more == ({"publish": {"id-token": "write"}} if file.stem == "release" else {})
    used = [step for step in steps(workflow) if "uses" in step]
    assert used
    for step in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    lines = [line for line in file.read_text().splitlines() if "uses:" in line]
    assert all(re.search(r"# v\d+\.\d+\.\d+$", line) for line in lines), "say which release the commit is"


def test_the_hooks_are_the_lint_of_make() -> None:
    hooks = yaml.safe_load(Path(".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["name"] for hook in hooks] == ["ruff check", "ruff format", "mypy"]
    makefile = Path("Makefile").read_text()
    for hook in hooks:
        command = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude")
        assert f"$(BIN)/{command}" in makefile
