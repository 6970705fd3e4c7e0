"""Every random stream a training step may draw from: torch (CPU and accelerators), Python's and NumPy's."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch

Streams: TypeAlias = dict[str, Any]  # the state of each stream, as its own library gives it


def rng_state() -> Streams:
    """Return the state of every stream."""
    state: Streams = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()  # a model may be spread over devices
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    try:
        import numpy
    except ImportError:
        return state
    return {**state, "numpy": numpy.random.get_state()}


def set_rng_state(state: Streams) -> None:
    """Restore the result of `rng_state`."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    if "numpy" in state:
        import numpy

        numpy.random.set_state(state["numpy"])


def own_stream(value: object) -> Callable[[], object] | None:
    """Return a function that winds a stream of its own back to where it is now; `None` for anything else.

    Args:
        value: A generator of torch, Python or NumPy, or not.

    Returns:
        The function.
    """
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return partial(value.setstate, value.getstate())
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.random.RandomState):
        return partial(value.set_state, value.get_state())
    if numpy is not None and isinstance(value, numpy.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None
