"""Rules that others add: a library that knows its own modules says once the roles of their parameters."""

from __future__ import annotations

from typing import Any

from lightning_gluon.partition.overrides import Key, Override, Overrides, RuleValue
from lightning_gluon.registry import load_plugins

__all__ = ["register_routing", "registered"]

_ORIGIN = "that was registered"
_ADDED: dict[Any, Any] = {}


def register_routing(
    key: Key,
    value: RuleValue,
    *,
    replace: bool = False,
) -> None:
    """Add a routing rule for every module that is partitioned from now on.

        X_i <- (1 - lr * weight_decay) X_i - lr * radius[role_i] * D_i(M_i)        D_i: LMO of the norm of role_i

    A rule of the user comes before it, the built-in rules come after it. It need not match anything. Of several that
    match, the one that was added first decides.

    Args:
        key: A glob over parameter names, or a module type, which covers everything inside.
        value: A role, a dict with `role` and optional `norm`, `views`, `reason`, or a callable
            `(name, parameter, module)` that returns one of them, or None for no opinion.
        replace: Put the rule in the place of one with the same key.

    Raises:
        TypeError: If the key or the value has a wrong type.
        ValueError: If a role, a norm or a field is unknown, or the key has a rule already.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_gluon.partition import partition, register_routing
        >>> class Mixing(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = nn.Parameter(torch.zeros(4, 6))
        >>> register_routing(Mixing, "hidden")
        >>> partition(Mixing()).role("kernel")
        'hidden'
    """
    rule = Override(key, value, _ORIGIN)
    if key in _ADDED and not replace:
        raise ValueError(
            f"Expected `key` to have no rule yet, but {rule.label} was registered as {_ADDED[key]!r}. "
            "Pass replace=True to put the new rule in its place."
        )
    _ADDED[key] = value


def registered() -> Overrides:
    """Return the rules that were added, as they are now, those of installed packages included."""
    load_plugins()
    return Overrides(_ADDED, _ORIGIN)
