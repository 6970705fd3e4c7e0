"""What only a GPU can show of the step's correctness: its LMO in three dtypes, graphs against eager, waits, memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import lightning_gluon
from benchmarks import lmo_gap

DTYPES = ("float16", "bfloat16", "tf32", "float32")
STEPS = (5, 6)
GRAPHS = {"eager": False, "compiled": True, "captured": "reduce-overhead"}
COMPILED = ("gluon", "muon")
ROUNDS = 4


def lmo(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield the gap and the norm of the polar factor in every dtype, for two numbers of steps.

    Args:
        device: Where to compute.
        tiny: Small matrices, two spectra.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = lmo_gap.QUICK if tiny else lmo_gap.SHAPES
    spectra = lmo_gap.SPECTRA[:2] if tiny else lmo_gap.SPECTRA
    for spectrum in spectra:
        for shape in shapes.values():
            g = lmo_gap.test_matrix(shape, spectrum, generator).to(device)
            steepest = torch.linalg.svdvals(g).sum()
            for dtype in DTYPES:
                for steps in STEPS:
                    d = _polar(g.float(), dtype, steps).double()
                    largest = torch.linalg.matrix_norm(d, 2)
                    gap = 1 - (g * d).sum() / largest / steepest
                    found = {"spectrum": spectrum, "shape": list(shape), "dtype": dtype, "steps": steps}
                    yield {**found, "gap": gap.item(), "largest": largest.item()}


def _polar(g: torch.Tensor, dtype: str, steps: int) -> torch.Tensor:
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    try:
        compute = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
        return lightning_gluon.orthogonalize(g, steps=steps, dtype=compute)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _net(device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return wide, tall and square maps, a convolution, a table and vectors."""
    torch.manual_seed(0)
    maps = [nn.Linear(48, 96), nn.Linear(96, 48), nn.Linear(48, 48), nn.Linear(48, 48)]
    net = nn.ModuleDict({"maps": nn.Sequential(*maps), "norm": nn.LayerNorm(48)})
    net["table"] = nn.Embedding(64, 48)
    net["conv"] = nn.Conv2d(8, 32, 3)
    return net.to(device, dtype)


def _give_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = drawn.to(parameter)


def _stepped(net: nn.Module, method: str, **options: Any) -> nn.Module:
    net = copy.deepcopy(net)
    optimizer = lightning_gluon.Gluon(net, lr=0.02, method=method, total_steps=100, **options)
    if optimizer.reference_point is not None:
        optimizer.two_point = "loop"
    for seed in range(ROUNDS):
        _prepare(net, optimizer, seed)
        optimizer.step()
    return net


def _prepare(net: nn.Module, optimizer: lightning_gluon.Gluon, seed: int) -> None:
    """Give a step all that it needs: gradients, and second ones where the method takes them."""
    _give_gradients(net, seed)
    if optimizer.needs_reference:
        optimizer.reference_gradients = {p: 0.9 * p.grad for p in net.parameters() if p.grad is not None}
        with optimizer.at_reference():
            pass


def _difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a.detach().cpu() - b.detach().cpu()).abs().max().item() for a, b in pairs)


def against_cpu(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield how far the weights of every method are from those on a CPU, in fp64, and as the device computes.

    Args:
        device: Where to compute.
        tiny: Two methods.
    """
    names = ("gluon", "gluon-mvr1") if tiny else sorted(lightning_gluon.METHODS)
    for method in names:
        row: dict[str, Any] = {"method": method}
        try:
            for dtype in (torch.float64, torch.float32):
                own, host = (_stepped(_net(place, dtype), method) for place in (device, "cpu"))
                row[str(dtype).removeprefix("torch.")] = _difference(own, host)
        except (RuntimeError, ValueError, TypeError) as error:  # one that needs an option, or that has a fault here
            row["error"] = f"{type(error).__name__}: {error}"[:200]
        yield row


def graphs(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield how far the weights of compiled and captured steps are from those of eager ones.

    Args:
        device: Where to compute; a CPU captures nothing.
        tiny: Eager steps alone.
    """
    kinds = ["eager"] if tiny else list(GRAPHS)
    for method in COMPILED:
        eager = _stepped(_net(device), method, on_nonfinite="ignore")
        for kind in kinds:
            other = _stepped(_net(device), method, on_nonfinite="ignore", compile=GRAPHS[kind])
            yield {"method": method, "mode": kind, "difference": _difference(eager, other)}


def _waits_of(optimizer: lightning_gluon.Gluon) -> bool | str:
    """Return False for a step that waits for nothing, else what torch says of the wait."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error)[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def waits(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield whether a step waits for the device, by torch's own watch.

    Args:
        device: Where to compute.
        tiny: One method.
    """
    for method, options in (("gluon", {}), ("muon", {}), ("limuon", {"rank": 8}))[: 1 if tiny else None]:
        net = _net(device)
        optimizer = lightning_gluon.Gluon(net, lr=0.02, method=method, on_nonfinite="ignore", **options)
        if optimizer.reference_point is not None:
            optimizer.two_point = "loop"
        row: dict[str, Any] = {"method": method, "waits": None}
        for seed in range(ROUNDS - 1):
            _prepare(net, optimizer, seed)
            optimizer.step()
        _prepare(net, optimizer, ROUNDS - 1)
        if device == "cuda":
            row["waits"] = _waits_of(optimizer)
        yield row
