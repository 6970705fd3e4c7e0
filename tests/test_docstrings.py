"""Docstrings of every callable that a user can reach, in all their parts; sentences of the whole package.

A method takes the mathematics, the shapes and the source from its class if its class has them, and counts as shown if
an example of its class calls it. Arguments and errors are its own.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import pytest

import lightning_gluon

PACKAGE = Path(lightning_gluon.__file__).parent
MODULES = ("", ".norms", ".callbacks", ".radius", ".smoothness", ".tasks", ".testing")

# Hooks and state that Lightning or torch calls, never a user: their contract is described there.
PROTOCOL = re.compile(
    r"on_\w+|setup|state_dict|load_state_dict|get_lr|\w+_step|\w+_dataloader|prepare_data|configure_model|write_on_\w+|forward"
)

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|References|Example|Shapes)s?:", re.MULTILINE)
FORMULA = re.compile(r" (<-|=|<=|>=|~|->) |\|\||->")
CODE = re.compile(r"`[^`]+`")
SHAPE = re.compile(
    r"^Shapes:|\([a-z0-9.*]+,( [\w.*]+)*\)|\bshape\b|\bscalar\b|\b0-dim\b|\bunits?\b", re.MULTILINE | re.I
)
SOURCE = re.compile(r"^References:|arXiv \d", re.MULTILINE)
LONGEST = 30  # words of a sentence
# Openings of a sentence about a sentence. A docstring begins with a noun or a verb.
CLAUSES = {"what", "where", "all", "that", "when", "how", "whether", "which", "this", "it", "there", "if"}

# Parts that cannot apply: part -> name -> reason.
EXEMPT: dict[str, dict[str, str]] = {
    "mathematics": {
        "register_option": "it adds a name to a table, and computes nothing",
        "WriteAnswers": "it writes text to a file",
    },
    "shapes": {"WriteAnswers": "it takes text"},
    "source": {
        "register_option": "the table is bookkeeping of this library, from no paper",
        "WriteAnswers": "the file is of this library's own making",
    },
    "example": {"ChatData.prompts": "it needs a tokenizer in a folder"},
}


@dataclass(frozen=True)
class Reachable:
    """A callable that a user can reach.

    Args:
        name: Its name, `Class.method` for a method.
        part: The callable.
        owner: The class of a method.
    """

    name: str
    part: Callable
    owner: type | None = None

    @property
    def text(self) -> str:
        """The docstring; that of an override goes on with the one of the method that it replaces."""
        own = inspect.cleandoc(self.part.__doc__ or "")
        bases = self.owner.__mro__[1:] if self.owner is not None else ()
        replaced = (vars(base).get(self.part.__name__) for base in bases)
        inherited = [inspect.cleandoc(method.__doc__) for method in replaced if inspect.isfunction(method)]
        return "\n\n".join([own, *inherited])

    @property
    def whole(self) -> str:
        """The docstring, and those of the class and its bases before it."""
        if self.owner is None:
            return self.text
        classes = [base for base in self.owner.__mro__ if base.__module__.startswith("lightning_gluon")]
        return "\n\n".join([inspect.cleandoc(base.__doc__ or "") for base in classes] + [self.text])

    def section(self, name: str) -> str:
        """Return a section of the docstring, empty if there is none."""
        found = re.search(rf"^{name}:\n((?:[ ]{{4}}.*\n?|\n)*)", self.text, re.MULTILINE)
        return found[1] if found else ""

    def functions(self) -> list[Callable]:
        """Return the functions that a call runs: of a class its construction."""
        if not inspect.isclass(self.part):
            return [self.part]
        own = vars(self.part)
        return [own[key] for key in ("__init__", "__post_init__") if inspect.isfunction(own.get(key))]

    def parameters(self) -> list[str]:
        """Return the names of the arguments."""
        if inspect.isclass(self.part) and "__init__" not in vars(self.part):
            return []
        given = inspect.signature(self.part).parameters
        return [name for name in given if name not in ("self", "cls")]

    def raises(self) -> bool:
        """Tell whether the body raises."""
        for function in self.functions():
            if function.__code__.co_filename.startswith("<"):  # written by `dataclass`
                continue
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            if any(isinstance(node, ast.Raise) for node in ast.walk(tree)):
                return True
        return False


def reachable() -> Iterator[Reachable]:
    seen = set()
    for name in MODULES:
        module = importlib.import_module(f"lightning_gluon{name}")
        for export in module.__all__:
            part = getattr(module, export)
            if not callable(part) or part in seen:
                continue
            seen.add(part)
            yield Reachable(export, part)
            if inspect.isclass(part):
                yield from methods(part)


def methods(owner: type) -> Iterator[Reachable]:
    for name, own in vars(owner).items():
        function = own.__func__ if isinstance(own, (classmethod, staticmethod)) else own
        if inspect.isfunction(function) and not name.startswith("_") and not PROTOCOL.fullmatch(name):
            yield Reachable(f"{owner.__name__}.{name}", function, owner)


def has_mathematics(given: Reachable) -> bool:
    body = SECTION.split(given.whole)[0] if given.owner is None else given.whole
    displayed = [line for line in body.splitlines() if line.startswith("    ")]
    inline = CODE.findall(body)
    return any(FORMULA.search(line) for line in [*displayed, *inline])


def has_arguments(given: Reachable) -> bool:
    listed = set(re.findall(r"^ {4}\*{0,2}(\w+):", given.section("Args"), re.MULTILINE))
    wanted = given.parameters()
    if given.owner is not None and len(wanted) == 1 and f"`{wanted[0]}`" in given.text:
        return True  # said in the one line
    return set(wanted) <= listed


def has_shapes(given: Reachable) -> bool:
    return bool(SHAPE.search(given.whole))


def has_errors(given: Reachable) -> bool:
    return bool(given.section("Raises")) or not given.raises()


def has_source(given: Reachable) -> bool:
    return bool(SOURCE.search(given.whole))


def has_example(given: Reachable) -> bool:
    finder = doctest.DocTestParser()
    if finder.get_examples(given.text):
        return True
    if given.owner is None:
        return False
    called = re.compile(rf"\.{given.part.__name__}\(")
    return any(called.search(example.source) for example in finder.get_examples(given.whole))


def sentences(text: str) -> list[str]:
    """Return the sentences of a docstring, without displayed lines and sections; code counts as one word."""
    prose = re.sub(r"^ {4,}(>>>|\.\.\.).*$", "", SECTION.split(text)[0], flags=re.MULTILINE)
    prose = re.sub(r"^( {4}|\|).*$", "", prose, flags=re.MULTILINE)
    prose = re.sub(r"`[^`]*`", "X", prose)
    prose = re.sub(r"\n\s*- ", ". ", prose)
    return re.split(r"(?<=[.!?:])\s+|\n\n", prose)


def begins_with_noun_or_verb(text: str) -> bool:
    first = text.partition("\n")[0]
    return first.endswith((".", "?", ":")) and first.split()[0].lower().strip(",.`") not in CLAUSES


PARTS: dict[str, Callable[[Reachable], bool]] = {
    "mathematics": has_mathematics,
    "arguments": has_arguments,
    "shapes": has_shapes,
    "errors": has_errors,
    "source": has_source,
    "example": has_example,
}
ALL = list(reachable())


@pytest.mark.parametrize("part", PARTS)
def test_every_callable_has_the_part(part: str) -> None:
    exempt = EXEMPT.get(part, {})
    lacking = [given.name for given in ALL if not PARTS[part](given) and given.name not in exempt]
    assert not lacking


@pytest.mark.parametrize("part", EXEMPT)
def test_exemptions_are_needed(part: str) -> None:
    by_name = {given.name: given for given in ALL}
    idle = [name for name in EXEMPT[part] if PARTS[part](by_name[name])]
    assert not idle, "these have the part by now"


FILES = sorted(PACKAGE.rglob("*.py"))


def identify(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            if text is not None:
                yield text


def bare(x: int) -> None:
    """Which is of no use."""
    raise ValueError(x)


def full(x: int) -> None:
    """Return `y = 2 x` of a scalar.

    Args:
        x: A number.

    Raises:
        ValueError: Always.

    References:
        Arithmetic.

    Example:
        >>> 1 + 1
        2
    """
    raise ValueError(x)


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_seen(part: str) -> None:
    assert not PARTS[part](Reachable("bare", bare))
    assert PARTS[part](Reachable("full", full))


def test_openings_are_seen() -> None:
    assert begins_with_noun_or_verb(full.__doc__ or "")
    assert not begins_with_noun_or_verb(bare.__doc__ or "")


def texts(path: Path) -> Iterator[str]:
    """Yield the docstrings of a file, its comments, and the sentences of its errors."""
    yield from docstrings(path)
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Raise):
            yield from (part.value for part in ast.walk(node) if is_text(part))
    for block in re.findall(r"(?:^ *# .*\n)+", text, re.MULTILINE):
        yield re.sub(r"^ *# ", "", block, flags=re.MULTILINE)


def is_text(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_sentences_are_short(path: Path) -> None:
    found = [sentence for text in texts(path) for sentence in sentences(text)]
    assert not [sentence for sentence in found if len(sentence.split()) > LONGEST]


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_docstrings_begin_with_a_noun_or_a_verb(path: Path) -> None:
    assert not [text for text in docstrings(path) if not begins_with_noun_or_verb(text)]


def test_sentences_by_hand() -> None:
    text = "Return one. And `two three`,\nfour.\n\n    five = six\n\nArgs:\n    seven: Eight."
    assert [len(sentence.split()) for sentence in sentences(text)] == [2, 3, 0]
