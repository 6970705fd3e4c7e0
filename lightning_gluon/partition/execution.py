"""The order of execution, seen in a forward pass on fake tensors: nothing is computed and nothing is changed.

Every weight layer marks what it gives with its name, and every operation passes the marks of its inputs on. What a
layer reads then says which layers run before it, and what the network returns says which layers give its outputs.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Execution", "execute"]

Marks = frozenset[str]
Call = tuple[tuple[Any, ...], dict[str, Any]]
_NOTHING: Marks = frozenset()


@dataclass(frozen=True)
class Execution:
    """Result of a forward pass.

    Args:
        reads: Path of every layer that ran, and the layers whose outputs it reads.
        returned: For every tensor that the network returned, the layers that gave it.
        failure: Why there was no forward pass; empty if there was one.
    """

    reads: Mapping[str, Marks]
    returned: tuple[Marks, ...] = ()
    failure: str = ""

    def ran(self, path: str) -> bool:
        """Tell whether a layer ran."""
        return path in self.reads

    def reads_input(self, path: str) -> bool:
        """Tell whether a layer that ran reads no output of another layer."""
        return not self.reads[path] - {path}

    def gives_output(self, path: str) -> bool:
        """Tell whether the output of a layer is returned, and not added to the features that lead to it."""
        return any(path in marks and self._apart(marks) for marks in self.returned)

    def only_feeds(self, path: str) -> bool:
        """Tell whether the output of a layer is read by other layers and never returned by itself."""
        fed = any(path in marks for other, marks in self.reads.items() if other != path)
        return fed and not any(path in marks for marks in self.returned)

    def _apart(self, marks: Marks) -> bool:
        """Tell whether no layer among the marks leads to another one."""
        return not any(self._upstream(mark) & marks - {mark} for mark in marks)

    def _upstream(self, path: str) -> Marks:
        """Return all layers that lead to a layer."""
        found: set[str] = set()
        waiting = [path]
        while waiting:
            for mark in self.reads.get(waiting.pop(), _NOTHING):
                if mark not in found:
                    found.add(mark)
                    waiting.append(mark)
        return frozenset(found)


def execute(
    root: nn.Module,
    layers: tuple[str, ...],
    batch: object,
) -> Execution:
    """Run the forward pass of a module on fake tensors and watch its layers.

    Args:
        root: The module. Its weights, buffers, random states and attributes stay as they are.
        layers: Paths of the layers to watch.
        batch: Inputs of `forward`: a tensor, a tuple of arguments, a dict of keyword arguments, or a batch of a data
            loader whose first entry holds the inputs.

    Returns:
        What was seen. A forward pass that fails gives an execution that says why and knows of no layer.
    """
    failure = ""
    for args, kwargs in _calls(batch):
        trace = _Trace(root, layers)
        try:
            returned = trace.run(args, kwargs)
        except Exception as error:  # the model's own code, on inputs that may not fit
            text = str(error).strip().splitlines() or [""]
            failure = failure or f"{type(error).__name__}: {text[0][:120]}"
            continue
        return Execution(trace.reads, returned)
    return Execution({}, (), failure or "no inputs")


def _calls(batch: object) -> Iterator[Call]:
    """Yield the ways in which a batch may be meant, the most usual first."""
    if isinstance(batch, Mapping):
        yield (), dict(batch)
        yield (batch,), {}
        return
    if not isinstance(batch, (tuple, list)) or not batch:
        yield (batch,), {}
        return
    first: Call = ((batch[0],), {})
    if isinstance(batch[0], Mapping):
        first = ((), dict(batch[0]))
    together: Call = (tuple(batch), {})
    yield first if isinstance(batch, list) else together
    yield together if isinstance(batch, list) else first
    yield (batch,), {}


class _Passing(TorchDispatchMode):
    """Pass marks from the inputs of an operation to its outputs."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation and mark its results."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        marks = self.trace.marks_of((args, kwargs))
        if marks:
            self.trace.mark(result, marks)
            if func._schema.is_mutable and args:
                self.trace.mark(args[0], marks)
        return result


class _Trace:
    """One forward pass: hooks on the layers, marks on the tensors."""

    def __init__(
        self,
        root: nn.Module,
        layers: tuple[str, ...],
    ) -> None:
        self.root = root
        self.layers = layers
        self.reads: dict[str, Marks] = {}
        self._marks: dict[int, Marks] = {}
        self._kept: list[Tensor] = []  # so that no storage is freed and its number given to another one

    def run(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Marks, ...]:
        """Run the forward pass and return the marks of every tensor that it returned."""
        with ExitStack() as stack:
            stack.enter_context(_as_it_was(self.root))
            stack.enter_context(torch.random.fork_rng(devices=[]))
            mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            state = _fake_state(self.root)
            args, kwargs = tree_map(_fake_input(mode), (args, kwargs))
            for hook in self._hooks():
                stack.callback(hook.remove)
            stack.enter_context(_Passing(self))
            result = torch.func.functional_call(self.root, state, args, kwargs)
            return tuple(self.marks_of(tensor) for tensor in _tensors(result))

    def mark(
        self,
        tensors: object,
        marks: Marks,
        *,
        anew: bool = False,
    ) -> None:
        """Add marks to tensors, or replace theirs."""
        for tensor in _tensors(tensors):
            key = _storage(tensor)
            self._kept.append(tensor)
            before = _NOTHING if anew else self._marks.get(key, _NOTHING)
            self._marks[key] = before | marks

    def marks_of(self, tensors: object) -> Marks:
        """Return the marks of all tensors in a structure."""
        found = _NOTHING
        for tensor in _tensors(tensors):
            found |= self._marks.get(_storage(tensor), _NOTHING)
        return found

    def _hooks(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        modules = dict(self.root.named_modules(remove_duplicate=False))
        paths: dict[nn.Module, list[str]] = {}
        for path in self.layers:
            module = modules[path]
            paths.setdefault(module, []).append(path)
        for module, names in paths.items():
            yield module.register_forward_pre_hook(self._before(names), with_kwargs=True)
            yield module.register_forward_hook(self._after(names))

    def _before(self, names: list[str]) -> Callable:
        def note(
            module: nn.Module,
            args: object,
            kwargs: object,
        ) -> None:
            marks = self.marks_of((args, kwargs))
            for name in names:
                self.reads[name] = self.reads.get(name, _NOTHING) | marks

        return note

    def _after(self, names: list[str]) -> Callable:
        def note(
            module: nn.Module,
            args: object,
            result: object,
        ) -> None:
            self.mark(result, frozenset(names), anew=True)

        return note


def _storage(tensor: Tensor) -> int:
    """Return the number of a tensor's storage, which its views share."""
    return tensor.untyped_storage()._cdata


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield all tensors in a structure, those of dataclasses included."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            for field in fields(leaf):
                yield from _tensors(getattr(leaf, field.name))


def _fake(tensor: Tensor) -> Tensor:
    """Return a fake tensor of the same shape; one on the meta device is taken to lie on the CPU."""
    device = "cpu" if tensor.is_meta else tensor.device
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return fake.requires_grad_(tensor.requires_grad)


def _fake_state(root: nn.Module) -> dict[str, Tensor]:
    """Return fake tensors for all parameters and buffers; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for source in (root.named_parameters, root.named_buffers):
        for name, tensor in source(remove_duplicate=False):
            if id(tensor) not in made:
                made[id(tensor)] = _fake(tensor)
            state[name] = made[id(tensor)]
    return state


def _fake_input(mode: FakeTensorMode) -> Callable[[Any], Any]:
    """Return a function that makes a fake tensor of every tensor of the batch."""

    def convert(value: object) -> Any:
        return _fake(value.detach()) if isinstance(value, Tensor) else value

    return convert


class _Attributes:
    """The attributes of a module, and the content of its dicts, lists and sets."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        self.contents = {}
        for name, value in self.attributes.items():
            if isinstance(value, (dict, list, set)):
                self.contents[name] = copy.copy(value)

    def restore(self) -> None:
        """Put them back."""
        self.module.__dict__.clear()
        self.module.__dict__.update(self.attributes)
        for name, content in self.contents.items():
            _restore_container(self.attributes[name], content)


@contextmanager
def _as_it_was(root: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and put all attributes and Python's random state back in the end."""
    kept = [_Attributes(module) for module in root.modules()]
    state = random.getstate()
    try:
        for entry in kept:
            entry.module.__dict__["training"] = False
        yield
    finally:
        random.setstate(state)
        for entry in kept:
            entry.restore()


def _restore_container(
    container: Any,
    content: Any,
) -> None:
    """Put the content of a dict, list or set back into it."""
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
