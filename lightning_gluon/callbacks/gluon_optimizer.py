"""An optimizer for a module that does not know it: from YAML, by the stock `Trainer` and `LightningCLI`."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from typing_extensions import Unpack

from lightning_gluon.configure import check_lr, configure_optimizers, warmup_steps
from lightning_gluon.methods import DEFAULT_METHOD
from lightning_gluon.norms.needs import Partner
from lightning_gluon.options import CHECKS, Group, Options
from lightning_gluon.partition.build import partition
from lightning_gluon.partition.overrides import Overrides, Rules
from lightning_gluon.radius.schedules import Schedule
from lightning_gluon.roles import ROLES
from lightning_gluon.step.checks import find_method
from lightning_gluon.step.decay import read_decay
from lightning_gluon.step.groups import build_groups
from lightning_gluon.step.sources import read_group
from lightning_gluon.valid import plain

__all__ = ["GluonOptimizer"]

# Rows and columns of the weights that options are tried on: more than any rank.
ANY_RANK = 1 << 20

# Settings that are no options of a group: what every method has, and the schedule.
NO_OPTIONS = (
    "lr",
    "weight_decay",
    "radius",
    "momentum",
    "compile",
    "method",
    "schedule",
    "warmup",
    "decay",
    "total_steps",
    "share_work",
)


class GluonOptimizer(Callback):
    """Replace a module's `configure_optimizers` by `lightning_gluon.configure_optimizers` when fitting begins.

        X <- (1 - lr * weight_decay) X - lr * radius[role] * D(M)

    with the step length `lr * radius[role]` in the norm of the role, the decay `weight_decay` and the momentum
    `M <- momentum M + ...` of the method. The schedule multiplies `lr`.

    The arguments are those of `lightning_gluon.configure_optimizers` and the options of all methods. An option that is
    None is the method's own default. Method, options and their ranges are checked at construction, before any model is
    built. The optimizer itself is made late: it then sees names, module types and sharded weights. Lightning asks for
    a `configure_optimizers` before it asks any callback. Under the stock `Trainer` a module without one needs one that
    returns None.

    Shapes: parameters of any shape. A role that holds matrices reads a parameter as one or more of shape `(out, in)`.

    Args:
        method: A row of `lightning_gluon.METHODS`.
        lr: The hidden radius, in the norm of a hidden matrix, or `auto` to find it; for `adamw` the learning rate.
            None leaves the module's own optimizer alone.
        weight_decay: Decoupled decay in units of 1 / lr, one value or one per role.
        radius: Radii relative to the hidden one, by role.
        momentum: Weight on the old momentum, in [0, 1).
        schedule: `constant`, `cosine`, `linear`, `wsd`, `theory` or `theory_constant`; stepped every optimizer step.
        warmup: Linear warmup in optimizer steps, or as a share of all steps if below 1.
        decay: A number is the share of the steps that `wsd` decays over, .2 by default. A string is how weights decay:
            `plain`, `cautious` or `follows_lr`, see `lightning_gluon.Gluon`.
        total_steps: Optimizer steps in all; None asks the Trainer.
        rules: Roles by glob over parameter names, for `lightning_gluon.partition`; also dicts with `role` and `norm`,
            `views` or `reason`.
        strict: Whether a parameter that no rule fits is an error.
        share_work: Whether the ranks of DDP share the LMOs; None times both ways in the first steps.
        per_head: Whether queries, keys and values are one matrix per head, see `lightning_gluon.partition`.
        **options: Options of the method, see `lightning_gluon.options.Options`.

    Raises:
        TypeError: If `rules` is no mapping of names to roles.
        ValueError: If the method, an option or a role is unknown, or a value is out of range.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> optimizer = GluonOptimizer("limuon", lr=0.02, rank=8)
        >>> optimizer.configure(torch.nn.Linear(64, 64)).param_groups[0]["rank"]
        8
        >>> module = LightningModule()
        >>> module.layer = torch.nn.Linear(64, 64)
        >>> optimizer.bind(module)
        >>> type(module.configure_optimizers()).__name__
        'Gluon'
        >>> optimizer.warn_if_idle()  # there is an `lr`, so nothing is said
    """

    def __init__(
        self,
        method: str = DEFAULT_METHOD,
        lr: float | Literal["auto"] | None = None,
        weight_decay: float | dict[str, float] | None = None,
        radius: dict[str, float] | None = None,
        momentum: float | None = None,
        schedule: str = "constant",
        warmup: int | float = 0,
        decay: float | str | None = None,
        total_steps: int | None = None,
        rules: dict[str, str | dict[str, Any]] | None = None,
        strict: bool = True,
        per_head: bool = False,
        share_work: bool | str | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        given: dict[str, object] = {
            "method": method,
            "lr": lr,
            "weight_decay": weight_decay,
            "radius": radius,
            "momentum": momentum,
            "schedule": schedule,
            "warmup": warmup,
            "decay": decay,
            "total_steps": total_steps,
            "share_work": share_work,
            **options,
        }
        # Configurations of OmegaConf give lists and dicts of their own, which no checkpoint should hold.
        self.settings: dict[str, Any] = {key: plain(value) for key, value in given.items() if value is not None}
        self.rules: Rules | None = plain(rules)
        self.strict = strict
        self.per_head = per_head
        self._check()

    @property
    def active(self) -> bool:
        """True if there is anything to configure: an `lr` was given."""
        return "lr" in self.settings

    def _check(self) -> None:
        """Raise for a setting that does not fit the method."""
        Overrides(self.rules)
        check_lr(self.settings.get("lr"))
        CHECKS["compile"]("compile", self.settings.get("compile"))
        self._check_schedule()
        self._check_groups()

    def _check_schedule(self) -> None:
        length = self.settings.get("total_steps", 1)  # of a schedule whose length is asked for later
        warmup = warmup_steps(self.settings["warmup"], length)
        theory = find_method(self.settings["method"]).theory
        share, _ = read_decay(self.settings.get("decay"))
        Schedule(self.settings["schedule"], length, warmup, share, theory)

    def _check_groups(self) -> None:
        """Build the groups of one weight per role."""
        large = torch.empty(ANY_RANK, ANY_RANK, device="meta")  # takes no memory
        groups: list[Group] = []
        for role in ROLES:
            partners = [Partner(large)]
            groups += read_group({"params": [torch.nn.Parameter(large)], "role": role, "partners": partners})
        lr = self.settings.get("lr")
        options = {key: value for key, value in self.settings.items() if key not in NO_OPTIONS}
        _, kind = read_decay(self.settings.get("decay"))
        if kind is not None:
            options["decay"] = kind
        build_groups(
            groups,
            method=self.settings["method"],
            lr=lr if isinstance(lr, (int, float)) else 0.0,
            weight_decay=self.settings.get("weight_decay"),
            radius=self.settings.get("radius"),
            momentum=self.settings.get("momentum"),
            options=options,
        )

    def warn_if_idle(self) -> None:
        """Warn that without a learning rate nothing else has an effect."""
        if self.active:
            return
        defaults = {name: parameter.default for name, parameter in inspect.signature(type(self)).parameters.items()}
        given = [key for key, value in self.settings.items() if defaults.get(key) != value]
        if self.rules:
            given.append("rules")
        if given:
            rank_zero_warn(
                "GluonOptimizer leaves the module's own optimizer alone, if it has one: it got "
                f"{', '.join(given)} but no `lr`."
            )

    def configure(self, module: torch.nn.Module) -> OptimizerLRScheduler:
        """Return what a module's `configure_optimizers` should return.

        Args:
            module: The module to train.

        Returns:
            The optimizer, or Lightning's dict with a scheduler.

        Raises:
            ValueError: If `lr` was not given, or the module does not fit the method or the rules.
        """
        if not self.active:
            raise ValueError("Expected `lr` to be given to GluonOptimizer, such as lr=0.02, but got none.")
        usual = self.rules is None and self.strict and not self.per_head
        routes = None if usual else partition(module, rules=self.rules, strict=self.strict, per_head=self.per_head)
        return configure_optimizers(module, partition=routes, **self.settings)

    def bind(self, module: LightningModule) -> None:
        """Make this module's `configure_optimizers` this one.

        Args:
            module: The module to train.
        """

        def configure(module: LightningModule) -> OptimizerLRScheduler:
            return self.configure(module)

        module.configure_optimizers = MethodType(configure, module)  # type: ignore[method-assign]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over before the Trainer asks the module for its optimizer.

        Args:
            trainer: The Trainer.
            pl_module: The module to train.
            stage: Only `fit` needs an optimizer.
        """
        if stage == "fit" and self.active:
            self.bind(pl_module)
        elif stage == "fit":
            self.warn_if_idle()
