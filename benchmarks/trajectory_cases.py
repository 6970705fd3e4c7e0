"""Models and cases of `benchmarks.trajectories`: what every method is run on, and with which options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

SEED = 17
CONSTANT = "constant"  # the schedule of most cases

# ---------------------------------------------------------------------- models


class Convolutions(nn.Module):
    """Convolutions with and without groups, batch norm and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 6, 3, groups=2)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.hidden = nn.Linear(6, 10)
        self.head = nn.Linear(10, 4)


class Transformer(nn.Module):
    """One block with fused attention, learned positions and a table that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(14, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 6, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 14, bias=False)
        self.head.weight = self.table.weight


class Experts(nn.Module):
    """Stacked experts as transformers stores them: one parameter holds a batch of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.gate_up_proj = nn.Parameter(torch.zeros(3, 12, 8))
        self.down_proj = nn.Parameter(torch.zeros(3, 8, 6))


class Mixture(nn.Module):
    """Experts between two linear maps, some of them of one shape so that they share a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.experts = Experts()
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)


class Vectors(nn.Module):
    """Vectors and one scalar, without any matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(7)
        self.scale = nn.Parameter(torch.zeros(5))
        self.temperature = nn.Parameter(torch.zeros(()))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": Convolutions,
    "transformer": Transformer,
    "mixture": Mixture,
    "vectors": Vectors,
}


def build(model: str, dtype: torch.dtype) -> nn.Module:
    """Return a model whose weights do not depend on how torch initialises layers."""
    module = MODELS[model]().to(dtype)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.2 * draw)
    return module


# ---------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One run: a method with options, and what happens between its steps."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = tuple(MODELS)
    poison: bool = False  # a gradient of step 3 is not a number
    absent: bool = False  # some parameters have no gradient in one step
    groups: bool = False  # groups with roles instead of the module
    resume: bool = False  # the state is saved and loaded halfway
    schedule: str = CONSTANT

    def name(self) -> str:
        """Return the method and whatever is not its default."""
        words = [self.method]
        for key, value in self.options.items():
            words.append(f"{key}={value}")
        flags = {"poison": self.poison, "absent": self.absent, "groups": self.groups, "resume": self.resume}
        for flag, given in flags.items():
            if given:
                words.append(flag)
        if self.schedule != CONSTANT:
            words.append(self.schedule)
        return " ".join(words)


def variants() -> list[Case]:
    """Return the cases beside the methods' defaults."""
    cases = [Case("gluon", {"orthogonalizer": name}) for name in ("you", "jordan", "newton_schulz")]
    cases += [Case("gluon", {"scaling": name}) for name in ("muon", "moonlight", "none")]
    cases += [
        Case("gluon", {"weight_decay": 0.1, "momentum": 0.7}),
        Case("gluon", {"weight_decay": {"hidden": 0.3}, "radius": {"bias": 0.7, "head": 2.0}}),
        Case("gluon", {"start": "zero"}),
        Case("gluon", {"momentum_dtype": "bfloat16"}),
        Case("gluon", {"orthogonalizer_steps": 3}),
        Case("gluon", {"on_nonfinite": "skip"}, poison=True),
        Case("gluon", absent=True),
        Case("gluon", groups=True),
        Case("gluon", resume=True),
        Case("gluon", schedule="cosine"),
        Case("muon", groups=True),
        Case("muon", absent=True),
        Case("muon", schedule="wsd"),
        Case("scion", {"weight_decay": 0.0}),
        Case("gluon-mvr1", absent=True),
        Case("gluon-mvr1", schedule="theory"),
        Case("limuon", schedule="theory_constant"),
        Case("gluon-mvr2", {"q": 0.4}),
        Case("gluon-mvr2", resume=True),
        Case("gluon-igt", absent=True),
        Case("gluon-igt", resume=True),
        Case("limuon", {"rank": 2}),
        Case("limuon", {"rank": 2, "seed": 3, "oversampling": 1, "power_iterations": 0}),
        Case("limuon", {"rank": 3, "reference": "step8"}),
        Case("limuon", {"rank": 2}, resume=True),
        Case("mars", {"gamma": 0.3, "clip": 5.0}),
        Case("mars-approximate", resume=True),
        Case("lionmuon", {"every": 3, "sign_radius": 0.5, "momentum_carry": 0.95}),
        Case("lionmuon", resume=True),
        Case("adamw", {"betas": (0.8, 0.99), "eps": 1e-6}),
        Case("adamw", resume=True),
        Case("signsgd", {"momentum": 0.5}),
        Case("sgd", {"momentum": 0.5}),
    ]
    for method in ("gluon-mvr1", "gluon-mvr3", "mars"):
        cases += [Case(method, {"reference": name}) for name in ("step", "step8")]
    cases += [Case(method, {"reference": "step"}, resume=True) for method in ("gluon-mvr1", "limuon")]
    return cases


# Options without a default.
ASKED: dict[str, dict[str, Any]] = {"mimuon": {"gate": 0.1}}


def all_cases(chosen: list[str]) -> list[Case]:
    """Return every method with its defaults and the variants, as far as the checkout knows the methods."""
    from lightning_gluon import METHODS

    methods = chosen or list(METHODS)
    cases = [Case(method, ASKED.get(method, {})) for method in methods]
    return cases + [case for case in variants() if case.method in methods]


# Methods and options that are trained under a Trainer.
TRAINED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gluon", {}),
    ("gluon-mvr1", {}),
    ("gluon-mvr1", {"fold": True}),
    ("gluon-mvr1", {"fold": "bfloat16"}),
    ("gluon-mvr1", {"fold": True, "reference": "step"}),
    ("gluon-mvr2", {"reference": "step8"}),
    ("gluon-igt", {}),
    ("limuon", {"rank": 2, "fold": True}),
    ("mars", {}),
)
