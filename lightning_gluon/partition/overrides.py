"""The user's own rules: a name glob or a module type, and what it decides."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_gluon.norms.table import NORMS
from lightning_gluon.norms.views import MatrixView, covers
from lightning_gluon.partition.network import Site
from lightning_gluon.partition.route import MATRIX_ROLES, ROLES

__all__ = ["Overrides", "Rules"]

Key = str | type[nn.Module]
Value = str | Mapping[str, Any] | Callable[[str, nn.Parameter, nn.Module], Any]
Rules = Mapping[Key, Value] | Sequence[tuple[Key, Value]]

_FIELDS = ("role", "norm", "views", "reason")
_NORMS = (*NORMS, "conv")


@dataclass
class _Rule:
    key: Key
    value: Value
    used: bool = False

    @property
    def label(self) -> str:
        return repr(self.key) if isinstance(self.key, str) else self.key.__name__

    @property
    def exact(self) -> bool:
        return isinstance(self.key, str) and not any(sign in self.key for sign in "*?[")

    def matches(self, sites: Iterable[Site]) -> bool:
        for site in sites:
            if isinstance(self.key, str):
                if fnmatch.fnmatchcase(site.name, self.key):
                    return True
            elif any(isinstance(module, self.key) for _, module in site.chain):
                return True
        return False


class Overrides:
    """The user's rules, checked: the first that matches a parameter and has an opinion wins.

    Args:
        rules: Mapping, or list of pairs, from a name glob or a module type to a role, a dict with `role` and optional
            `norm`, `views`, `reason`, or a callable `(name, parameter, module)` that returns one of those or None.

    Raises:
        TypeError: If the rules are no pairs, a key is neither a glob nor a module type, or a value none of the three.
        ValueError: If a role, a norm or a field is unknown.
    """

    def __init__(self, rules: Rules | None) -> None:
        self._rules = [_Rule(key, value) for key, value in _pairs(rules)]
        for rule in self._rules:
            if not isinstance(rule.key, str) and not (isinstance(rule.key, type) and issubclass(rule.key, nn.Module)):
                raise TypeError(
                    f"Expected every key of `rules` to be a name glob or a torch.nn.Module type, but got {rule.key!r}."
                )
            if not callable(rule.value) or isinstance(rule.value, type):
                _checked(rule.value, rule.label)

    def find(self, sites: Sequence[Site], parameter: nn.Parameter) -> dict[str, Any] | None:
        """Return the override of a parameter as a dict with at least `role`, or None.

        Args:
            sites: All places of the parameter.
            parameter: The parameter.

        Returns:
            The fields of the first rule that matches, or None.
        """
        answer = None
        for rule in self._rules:
            if not rule.matches(sites):
                continue
            rule.used = True
            if answer is None:
                answer = self._apply(rule, sites[0], parameter)
        return answer

    def _apply(self, rule: _Rule, site: Site, parameter: nn.Parameter) -> dict[str, Any] | None:
        value = rule.value
        if callable(value):
            value = value(site.name, parameter, site.owner)
            if value is None:
                return None
        fields = _checked(value, rule.label)
        if fields["role"] in MATRIX_ROLES and parameter.ndim < 2:
            if not rule.exact:
                return None  # a glob over a block means its matrices; the vectors in it keep their own rule
            raise ValueError(
                f"Expected a parameter with at least 2 dimensions for role {fields['role']!r}, but got {site.name!r} "
                f"with shape {tuple(parameter.shape)}. Give it the role 'bias' or 'elementwise'."
            )
        fields = {"reason": f"rule {rule.label} of the user", **fields}
        if "views" in fields:
            fields["views"] = _views(fields["views"], site.name, tuple(parameter.shape))
        return fields

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
        what = "these" if len(idle) > 1 else "a name glob" if isinstance(idle[0].key, str) else "a module type"
        near = [key for rule in idle if isinstance(rule.key, str) for key in _near(rule.key, names)]
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"Expected every rule to match a parameter, but {what} matched none: "
            f"{', '.join(rule.label for rule in idle)}. Compare with the names in `print(partition(module))`.{hint}"
        )


def _pairs(rules: Any) -> list[tuple[Any, Any]]:
    """Return the rules as pairs of key and value."""
    pairs = rules.items() if isinstance(rules, Mapping) else () if rules is None else rules
    listed = list(pairs) if isinstance(pairs, Iterable) and not isinstance(pairs, str) else [pairs]
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in listed):
        raise TypeError(
            "Expected `rules` to map name globs or module types to roles, such as {'stem.*': 'hidden'}, or to be a "
            f"list of such pairs, but got {rules!r}."
        )
    return [(key, value) for key, value in listed]


def _near(key: str, names: Sequence[str]) -> list[str]:
    """Return what a key that matches no name could have been: the inside of a module, or a similar name."""
    if any(name.startswith(f"{key}.") for name in names):
        return [f"{key}.*"]
    return difflib.get_close_matches(key, names, n=1)


def _checked(value: Any, label: str) -> dict[str, Any]:
    """Return a rule's value as a dict of known fields with a known role."""
    fields = {"role": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping):
        raise TypeError(
            f"Expected the rule for {label} to be a role, a dict with 'role', or a callable, but got {value!r}."
        )
    unknown = [key for key in fields if key not in _FIELDS]
    if unknown or "role" not in fields:
        raise ValueError(
            f"Expected the rule for {label} to have the field 'role' and of {list(_FIELDS[1:])} what it needs, "
            f"but got {list(fields)}."
        )
    if fields["role"] not in ROLES:
        raise ValueError(
            f"Expected the role of rule {label} to be one of {', '.join(ROLES)}, but got {fields['role']!r}."
        )
    given = {key: value for key, value in fields.items() if value is not None}
    if given.get("norm", "rms") not in _NORMS:
        raise ValueError(
            f"Expected the `norm` of rule {label} to be one of {', '.join(_NORMS)}, but got {given['norm']!r}."
        )
    if not isinstance(given.get("reason", ""), str):
        raise TypeError(f"Expected the `reason` of rule {label} to be a text, but got {given['reason']!r}.")
    if "views" in given and given["role"] not in MATRIX_ROLES:
        raise ValueError(f"Expected no `views` in rule {label}, since the role {given['role']!r} has no matrices.")
    return given


def _views(views: Any, name: str, shape: tuple[int, ...]) -> tuple[MatrixView, ...]:
    """Read `views` of a rule: matrix views, or the sizes of blocks along the out dimension."""
    given = tuple(views) if isinstance(views, Iterable) else ()
    if (
        given
        and all(isinstance(size, int) and size > 0 for size in given)
        and sum(given) == shape[0]
        and len(shape) == 2
    ):
        return MatrixView.blocks(shape, sizes=given)
    if given and all(isinstance(view, MatrixView) for view in given) and covers(given, shape):
        return given
    raise ValueError(
        f"Expected `views` of {name!r} with shape {shape} to be MatrixViews that cover it, or sizes of blocks that add "
        f"up to its {shape[0] if shape else 0} rows, but got {views!r}."
    )
