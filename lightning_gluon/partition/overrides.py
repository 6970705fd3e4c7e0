"""The user's own rules: a name glob or a module type, and its decision."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_gluon.norms.table import NORMS
from lightning_gluon.norms.views import MatrixView, covers
from lightning_gluon.partition.place import Place, Shape
from lightning_gluon.roles import MATRIX_ROLES, ROLES

__all__ = ["Decision", "Override", "Overrides", "Rules"]

Key = str | type[nn.Module]
RuleValue = str | Mapping[str, Any] | Callable[[str, nn.Parameter, nn.Module], Any]
Rules = Mapping[Key, RuleValue] | Sequence[tuple[Key, RuleValue]]

ONE_MATRIX = "whole"
_RULE_FIELDS = ("role", "norm", "views", "reason")


@dataclass(frozen=True)
class Decision:
    """Decision of a rule about one parameter; None and empty if it leaves a field to the built-in rules."""

    role: str
    reason: str
    norm: str | None = None
    views: tuple[MatrixView, ...] = ()


class Override:
    """One rule, checked.

    Args:
        key: A name glob, or a module type that covers everything inside.
        value: A role, a dict with `role` and optional `norm`, `views`, `reason`, or a callable
            `(name, parameter, module)` that returns one of those or None.
        origin: Who wrote it, for the reason.

    Raises:
        TypeError: If the key is neither a glob nor a module type, or the value none of the three.
        ValueError: If a role, a norm or a field is unknown.
    """

    def __init__(
        self,
        key: Key,
        value: RuleValue,
        origin: str = "of the user",
    ) -> None:
        if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
            raise TypeError(
                f"Expected every key of `rules` to be a name glob or a torch.nn.Module type, but got {key!r}."
            )
        self.key = key
        self.value = value
        self.origin = origin
        self.used = False
        if not callable(value) or isinstance(value, type):
            _checked(value, self.label)

    @property
    def label(self) -> str:
        """Its key, as messages show it."""
        return repr(self.key) if isinstance(self.key, str) else self.key.__name__

    @property
    def what(self) -> str:
        """Kind of its key."""
        return "a name glob" if isinstance(self.key, str) else "a module type"

    def near(self, names: Sequence[str]) -> list[str]:
        """Return a suggestion for a key that matches no name: the inside of a module, or a similar name."""
        if not isinstance(self.key, str):
            return []
        inside = f"{self.key}."
        if any(name.startswith(inside) for name in names):
            return [f"{inside}*"]
        return difflib.get_close_matches(self.key, names, n=1)

    @property
    def is_exact(self) -> bool:
        """True when it names one parameter."""
        return isinstance(self.key, str) and not any(sign in self.key for sign in "*?[")

    def matches(self, places: Iterable[Place]) -> bool:
        """Tell whether the key fits one of the places of a parameter."""
        for place in places:
            if isinstance(self.key, str):
                if fnmatch.fnmatchcase(place.name, self.key):
                    return True
            elif any(isinstance(module, self.key) for _, module in place.chain):
                return True
        return False

    def decide(
        self,
        place: Place,
        parameter: nn.Parameter,
    ) -> Decision | None:
        """Return the rule's decision about a parameter, or None when it has no opinion.

        Args:
            place: First place of the parameter.
            parameter: The parameter.

        Returns:
            The decision, or None.

        Raises:
            ValueError: If a vector is to hold matrices, or `views` do not cover the parameter.
        """
        value = self.value
        if callable(value):
            value = value(place.name, parameter, place.owner)
            if value is None:
                return None
        fields = _checked(value, self.label)
        role = fields["role"]
        shape = tuple(parameter.shape)
        if role in MATRIX_ROLES and len(shape) < 2:
            self._refuse_vector(role, place.name, shape)
            return None
        views = _views(fields["views"], place.name, shape) if "views" in fields else ()
        reason = fields.get("reason", f"rule {self.label} {self.origin}")
        return Decision(role, reason, fields.get("norm"), views)

    def _refuse_vector(self, role: str, name: str, shape: Shape) -> None:
        """Raise if a vector is named as a matrix; a glob over a block means its matrices only."""
        if self.is_exact:
            raise ValueError(
                f"Expected a parameter with at least 2 dimensions for role {role!r}, but got {name!r} "
                f"with shape {shape}. Give it the role 'bias' or 'elementwise'."
            )


class Overrides:
    """Several rules: the first that matches a parameter and has an opinion wins.

    Args:
        rules: Mapping, or list of pairs, from the key of an `Override` to its value.
        origin: Who wrote them, for the reason.

    Raises:
        TypeError: If the rules are no pairs, or one of them has a wrong type.
        ValueError: If a role, a norm or a field is unknown.
    """

    def __init__(
        self,
        rules: Rules | None,
        origin: str = "of the user",
    ) -> None:
        self._rules = [Override(key, value, origin) for key, value in _pairs(rules)]

    def find(
        self,
        places: Sequence[Place],
        parameter: nn.Parameter,
    ) -> Decision | None:
        """Return the decision of the first rule that matches a parameter, or None.

        Args:
            places: All places of the parameter.
            parameter: The parameter.

        Returns:
            The decision, or None.
        """
        decision = None
        for rule in self._rules:
            if not rule.matches(places):
                continue
            rule.used = True
            if decision is None:
                decision = rule.decide(places[0], parameter)
        return decision

    def check_used(self, names: Sequence[str]) -> None:
        """Raise when a rule matched nothing.

        Args:
            names: The names of all parameters.

        Raises:
            ValueError: If a key of `rules` matches no parameter.
        """
        idle = [rule for rule in self._rules if not rule.used]
        if not idle:
            return
        near: list[str] = []
        for rule in idle:
            near += rule.near(names)
        what = "these" if len(idle) > 1 else idle[0].what
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"Expected every rule to match a parameter, but {what} matched none: "
            f"{', '.join(rule.label for rule in idle)}. Compare with the names in `print(partition(module))`.{hint}"
        )


def _is_pair(value: object) -> bool:
    """Return whether a value behaves as a sequence of two: a tuple, or a list of a configuration library."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _pairs(rules: Any) -> list[tuple[Any, Any]]:
    """Return the rules as pairs of key and value."""
    if rules is None:
        return []
    pairs = rules.items() if isinstance(rules, Mapping) else rules
    listed = [pairs]
    if isinstance(pairs, Iterable) and not isinstance(pairs, str):
        listed = list(pairs)
    if not all(_is_pair(pair) for pair in listed):
        raise TypeError(
            "Expected `rules` to map name globs or module types to roles, such as {'stem.*': 'hidden'}, or to be a "
            f"list of such pairs, but got {rules!r}."
        )
    return [(key, value) for key, value in listed]


def _checked(
    value: object,
    label: str,
) -> dict[str, Any]:
    """Return a rule's value as a dict of known fields with a known role."""
    fields = {"role": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping):
        raise TypeError(
            f"Expected the rule for {label} to be a role, a dict with 'role', or a callable, but got {value!r}."
        )
    if "role" not in fields or not set(fields) <= set(_RULE_FIELDS):
        raise ValueError(
            f"Expected the rule for {label} to have the field 'role' and of {list(_RULE_FIELDS[1:])} what it needs, "
            f"but got {list(fields)}."
        )
    given = {key: value for key, value in fields.items() if value is not None}
    _check_fields(given, fields["role"], label)
    return given


def _check_fields(
    given: Mapping[str, object],
    role: object,
    label: str,
) -> None:
    """Raise unless every field has a value that it can have."""
    if role not in ROLES:
        raise ValueError(f"Expected the role of rule {label} to be one of {', '.join(ROLES)}, but got {role!r}.")
    norms = (*NORMS, "conv")
    if "norm" in given and given["norm"] not in norms:
        raise ValueError(
            f"Expected the `norm` of rule {label} to be one of {', '.join(norms)}, but got {given['norm']!r}."
        )
    if not isinstance(given.get("reason", ""), str):
        raise TypeError(f"Expected the `reason` of rule {label} to be a text, but got {given['reason']!r}.")
    if "views" in given and role not in MATRIX_ROLES:
        raise ValueError(f"Expected no `views` in rule {label}, since the role {role!r} has no matrices.")


def _views(
    views: object,
    name: str,
    shape: Shape,
) -> tuple[MatrixView, ...]:
    """Read `views` of a rule: matrix views, the sizes of blocks along the out dimension, or `whole` for one matrix."""
    if views == ONE_MATRIX and len(shape) == 2:
        return (MatrixView.whole(shape),)
    given = tuple(views) if isinstance(views, Iterable) else ()
    if _are_sizes(given, shape):
        return MatrixView.blocks(shape, sizes=given)
    if given and all(isinstance(view, MatrixView) for view in given) and covers(given, shape):
        return given
    raise ValueError(
        f"Expected `views` of {name!r} with shape {shape} to be MatrixViews that cover it, sizes of blocks that add "
        f"up to its {shape[0] if shape else 0} rows, or 'whole' for one matrix, but got {views!r}."
    )


def _are_sizes(
    given: tuple[Any, ...],
    shape: Shape,
) -> bool:
    """Tell whether values are sizes of blocks that add up to the rows of a matrix."""
    if not given or len(shape) != 2:
        return False
    if not all(isinstance(size, int) and size > 0 for size in given):
        return False
    return sum(given) == shape[0]
