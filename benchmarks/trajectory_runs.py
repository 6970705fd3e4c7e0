"""Runs of `benchmarks.trajectories`: a case on a model, a training under Lightning, and the file that holds all."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lightning_gluon
from benchmarks.trajectory_cases import SEED, TRAINED, Case, all_cases, build

__all__ = ["Trajectories", "Trajectory", "kept_steps", "read", "run", "train", "write"]

LR = 0.02
DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
PRECISIONS: dict[str, Any] = {"fp64": "64-true", "fp32": "32-true"}  # in the Trainer's words
OPTIONS: dict[str, dict[str, Any]] = {
    "fp64": {"orthogonalizer": "svd", "orthogonalizer_dtype": "float64"},
    "fp32": {},
}
ABSENT_STEP = 2  # in which some parameters have no gradient
POISONED_STEP = 3  # in which a gradient is not a number


@dataclass
class Trajectory:
    """Roles of the parameters, and their weights at the start and after some of the steps."""

    names: list[str]
    roles: dict[str, str]
    start: list[Tensor]
    weights: dict[int, list[Tensor]] = field(default_factory=dict)
    refusal: str = ""


Trajectories = dict[str, Trajectory]


def kept_steps(steps: int) -> set[int]:
    """Return the steps whose weights are kept: the first four, the powers of two after them, and the last."""
    kept = {1, 2, 3, 4, steps}
    power = 8
    while power < steps:
        kept.add(power)
        power *= 2
    return {step for step in kept if step <= steps}


def copies(module: nn.Module) -> list[Tensor]:
    """Return the weights as they are now."""
    return [parameter.detach().clone() for parameter in module.parameters()]


# ---------------------------------------------------------------------- the optimizer of a case


def roles_of(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Return the role of every parameter; a group with the flag `input_layer` holds input layers."""
    roles = {}
    for group in optimizer.param_groups:
        role = "input" if group.get("input_layer") else group["role"]
        for name in group["param_names"]:
            roles[name] = role
    return roles


def role_groups(module: nn.Module, roles: dict[str, str]) -> list[dict[str, Any]]:
    """Return one group per role, in the words of the checkout: `input` was once a flag on `embedding`."""
    known = lightning_gluon.METHODS["gluon"].rules
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        role = roles[name]
        if role not in groups:
            words = {"role": role} if role in known else {"role": "embedding", "input_layer": True}
            groups[role] = {"params": [], "param_names": [], **words}
        groups[role]["params"].append(parameter)
        groups[role]["param_names"].append(name)
    return list(groups.values())


def optimizer_of(case: Case, module: nn.Module, precision: str, steps: int) -> tuple[Any, Any]:
    """Return the optimizer of a case, and its scheduler or None."""
    options = {**OPTIONS[precision], **case.options}
    if case.groups:
        roles = roles_of(lightning_gluon.Gluon(module, LR, method=case.method))
        groups = role_groups(module, roles)
        return lightning_gluon.Gluon(groups, LR, method=case.method, **options), None
    configured = lightning_gluon.configure_optimizers(
        module,
        case.method,
        lr=LR,
        schedule=case.schedule,
        total_steps=steps,
        **options,
    )
    if isinstance(configured, dict):
        return configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    return configured, None


# ---------------------------------------------------------------------- one run


class Gradients:
    """The gradient `draw + pull * X` of every parameter: the draw from the global stream, the pull fixed.

    Args:
        case: Says in which step gradients are absent or poisoned.
        module: The model.
    """

    def __init__(self, case: Case, module: nn.Module) -> None:
        self.case = case
        self.parameters = list(module.parameters())
        generator = torch.Generator().manual_seed(SEED + 1)
        self.pulls = []
        for parameter in self.parameters:
            pull = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
            self.pulls.append(pull)
        self.step = 0

    def __call__(self) -> Tensor:
        """Set the gradients at the weights as they are now; the closure of `step`."""
        for index, parameter in enumerate(self.parameters):
            draw = torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype)
            parameter.grad = draw + self.pulls[index] * parameter.detach()
        if self.case.poison and self.step == POISONED_STEP:
            self.parameters[0].grad = torch.full_like(self.parameters[0], torch.nan)
        if self.case.absent and self.step == ABSENT_STEP:
            for parameter in self.parameters[1::3]:
                parameter.grad = None
        return torch.zeros(())


def run(case: Case, model: str, precision: str, steps: int) -> Trajectory:
    """Run one case on one model.

    Args:
        case: The method, its options and the events.
        model: A key of `MODELS`.
        precision: `fp64` (exact polar factors) or `fp32` (the method's defaults).
        steps: Number of steps.

    Returns:
        The weights along the way.
    """
    module = build(model, DTYPES[precision])
    optimizer, scheduler = optimizer_of(case, module, precision, steps)
    gradients = Gradients(case, module)
    names = [name for name, _ in module.named_parameters()]
    found = Trajectory(names, roles_of(optimizer), copies(module))
    for step in range(steps):
        torch.manual_seed(SEED + 2 + step)
        gradients.step = step
        optimizer.step(gradients)
        if scheduler is not None:
            scheduler.step()
        if case.resume and step == steps // 2:
            saved = optimizer.state_dict()
            optimizer, scheduler = optimizer_of(case, module, precision, steps)
            optimizer.load_state_dict(saved)
        if step + 1 in kept_steps(steps):
            found.weights[step + 1] = copies(module)
    return found


# ---------------------------------------------------------------------- under a Trainer


def train(method: str, options: dict[str, Any], precision: str, steps: int) -> Trajectory:
    """Train a small network with dropout under the Trainer, two micro-batches per step.

    Args:
        method: The method.
        options: Its options.
        precision: `fp64` (exact polar factors) or `fp32` (the method's defaults).
        steps: Number of steps.

    Returns:
        The weights before and after.
    """
    from lightning.pytorch import LightningModule, Trainer, seed_everything

    class Regression(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2))
            self.middle = nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            inputs, targets = batch.split((6, 2), dim=1)
            errors = self.head(self.middle(self.body(inputs))) - targets
            return errors.square().mean()

        def configure_optimizers(self) -> Any:
            given = {**OPTIONS[precision], **options}
            return lightning_gluon.configure_optimizers(self, method, lr=LR, **given)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # importing Lightning has set it
    seed_everything(SEED, verbose=False)
    dtype = DTYPES[precision]
    module = Regression().to(dtype)
    batches = torch.randn(2 * steps, 4, 8, dtype=torch.float64).to(dtype)
    trainer = Trainer(
        max_steps=steps,
        accumulate_grad_batches=2,
        accelerator="cpu",
        precision=PRECISIONS[precision],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    names = [name for name, _ in module.named_parameters()]
    start = copies(module)
    data: Any = batches  # a tensor is a data set of its rows
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    roles = roles_of(trainer.optimizers[0])
    return Trajectory(names, roles, start, {steps: copies(module)})


# ---------------------------------------------------------------------- all of them


def attempt(action: Callable[..., Trajectory], *arguments: Any) -> Trajectory:
    """Return what a run returns; one that is refused is a row too, and does not end the others."""
    try:
        return action(*arguments)
    except Exception as error:
        message = str(error).splitlines() or [""]
        return Trajectory([], {}, [], refusal=f"{type(error).__name__}: {message[0]}")


def trajectories(methods: list[str], steps: int, with_trainer: bool) -> Iterator[tuple[str, Trajectory]]:
    """Yield every trajectory of this checkout with its key: case, model and precision."""
    for case in all_cases(methods):
        for model in case.models:
            for precision in DTYPES:
                yield f"{case.name()} | {model} | {precision}", attempt(run, case, model, precision, steps)
    if not with_trainer:
        return
    for method, options in TRAINED:
        if methods and method not in methods:
            continue
        name = Case(method, options).name()
        for precision in DTYPES:
            yield f"{name} | trainer | {precision}", attempt(train, method, options, precision, steps)


def write(path: Path, methods: list[str], steps: int, with_trainer: bool) -> None:
    """Write the trajectories of the `lightning_gluon` that is imported.

    Args:
        path: The file.
        methods: Methods; empty for all.
        steps: Steps of every run.
        with_trainer: Whether to train under Lightning too.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows = {}
    for key, found in trajectories(methods, steps, with_trainer):
        rows[key] = vars(found)
    package = Path(lightning_gluon.__file__).parent
    torch.save({"package": str(package), "rows": rows}, path)


def read(path: Path) -> tuple[Path, Trajectories]:
    """Read a file that `write` wrote.

    Args:
        path: The file.

    Returns:
        The folder of the package that took the steps, and the trajectories.
    """
    saved = torch.load(path, weights_only=True)
    rows = {key: Trajectory(**row) for key, row in saved["rows"].items()}
    return Path(saved["package"]), rows
