"""An optimizer for a module that does not know it: from YAML, by the stock `Trainer` and `LightningCLI`."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import Unpack

from lightning_gluon.configure import check_lr, configure_optimizers, warmup_steps
from lightning_gluon.options import Options
from lightning_gluon.partition import partition
from lightning_gluon.partition.overrides import Overrides
from lightning_gluon.radius import Schedule
from lightning_gluon.roles import ROLES
from lightning_gluon.step.groups import build_groups, find_method

__all__ = ["GluonOptimizer"]

_ANY_RANK = 1 << 20
_NOT_GROUPED = ("compile", "method", "schedule", "warmup", "decay", "total_steps")


class GluonOptimizer(Callback):
    """Replace a module's `configure_optimizers` by `lightning_gluon.configure_optimizers` when fitting begins.

    The parameters are those of `lightning_gluon.configure_optimizers` and the options of all methods. An option that is
    None is the method's own default. Method, options and their ranges are checked at construction, before any model
    is built. The optimizer itself is made late, so that it sees names, module types and sharded weights. Lightning
    wants a `configure_optimizers` before it asks any callback: under the stock `Trainer` a module that has none needs
    one, if only to return None.

    Args:
        method: A row of `lightning_gluon.METHODS`.
        lr: The hidden radius, or `auto` to find it; for `adamw` the learning rate. None leaves the module's own
            optimizer alone.
        weight_decay: Decoupled decay in units of 1 / lr, one value or one per role.
        radius: Radii relative to the hidden one, by role.
        momentum: Weight on the old momentum, in [0, 1).
        schedule: `constant`, `cosine`, `linear`, `wsd`, `theory` or `theory_constant`; stepped every optimizer step.
        warmup: Linear warmup in optimizer steps, or as a share of all steps if below 1.
        decay: Share of the steps that `wsd` decays over.
        total_steps: Optimizer steps in all; None asks the Trainer.
        rules: Roles by glob over parameter names, for `lightning_gluon.partition`; also dicts with `role` and `norm`,
            `views` or `reason`.
        strict: Whether a parameter that no rule fits is an error.
        **options: Options of the method, see `lightning_gluon.options.Options`.

    Raises:
        TypeError: If `rules` is no mapping of names to roles.
        ValueError: If the method, an option or a role is unknown, or a value is out of range.

    Example:
        >>> optimizer = GluonOptimizer("limuon", lr=0.02, rank=8)
        >>> optimizer.configure(torch.nn.Linear(64, 64)).param_groups[0]["rank"]
        8
    """

    def __init__(
        self,
        method: str = "gluon",
        lr: float | Literal["auto"] | None = None,
        weight_decay: float | dict[str, float] | None = None,
        radius: dict[str, float] | None = None,
        momentum: float | None = None,
        schedule: str = "constant",
        warmup: int | float = 0,
        decay: float | None = None,
        total_steps: int | None = None,
        rules: dict[str, str | dict[str, Any]] | None = None,
        strict: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {
            "method": method,
            "lr": lr,
            "weight_decay": weight_decay,
            "radius": radius,
            "momentum": momentum,
            "schedule": schedule,
            "warmup": warmup,
            "decay": decay,
            "total_steps": total_steps,
            **options,
        }
        self.settings = {key: value for key, value in given.items() if value is not None}
        self.rules: Any = rules
        self.strict = strict
        self._check()

    @property
    def active(self) -> bool:
        """Whether there is anything to configure: an `lr` was given."""
        return "lr" in self.settings

    def _check(self) -> None:
        """Build the groups of one weight per role, which raises for whatever does not fit the method."""
        large = torch.empty(_ANY_RANK, _ANY_RANK, device="meta")  # takes no memory
        weights = [{"params": [torch.nn.Parameter(large)], "role": role} for role in ROLES]
        named = ("lr", "weight_decay", "radius", "momentum")
        Overrides(self.rules)
        lr = self.settings.get("lr")
        check_lr(lr)
        length = self.settings.get("total_steps", 1)  # of a schedule whose length is asked for later
        warmup, decay = warmup_steps(self.settings["warmup"], length), self.settings.get("decay", 0.2)
        Schedule(self.settings["schedule"], length, warmup, decay, find_method(self.settings["method"]).theory)
        options = {k: v for k, v in self.settings.items() if k not in (*named, *_NOT_GROUPED)}
        build_groups(
            weights,
            method=self.settings["method"],
            lr=lr if isinstance(lr, (int, float)) else 0.0,
            options=options,
            **{key: self.settings.get(key) for key in named[1:]},
        )

    def warn_if_idle(self) -> None:
        """Say that without a learning rate nothing else has an effect."""
        default = inspect.signature(type(self)).parameters
        given = [key for key, value in self.settings.items() if key not in default or value != default[key].default]
        given += ["rules"] if self.rules else []
        if given and not self.active:
            rank_zero_warn(
                "GluonOptimizer leaves the module's own optimizer alone, if it has one: it got "
                f"{', '.join(given)} but no `lr`."
            )

    def configure(self, module: torch.nn.Module) -> Any:
        """Return what a module's `configure_optimizers` should return.

        Args:
            module: The module to train.

        Returns:
            The optimizer, or Lightning's dict with a scheduler.
        """
        route = None if self.rules is None and self.strict else partition(module, rules=self.rules, strict=self.strict)
        return configure_optimizers(module, partition=route, **self.settings)

    def bind(self, module: LightningModule) -> None:
        """Make this module's `configure_optimizers` this one.

        Args:
            module: The module to train.
        """

        def configure(module: LightningModule) -> Any:
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
