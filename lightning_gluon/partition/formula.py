"""Formulas of the tables: arithmetic over the attributes of a module, such as `heads * head_dim`.

A name that the module lacks makes a formula unknown, except on the left of `or`. Nothing else of Python is understood.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import cache

__all__ = ["formula_value"]

Value = int | bool | None
Lookup = Callable[[str], Value]

_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def formula_value(
    formula: str,
    lookup: Lookup,
) -> Value:
    """Return the value of a formula, or None when something that it needs is unknown.

    Args:
        formula: Whole numbers, names, `+ - * // %`, `and`, `or`, `not`, `==`, `<` and parentheses.
        lookup: Gives the value of a name, or None.

    Returns:
        A number, a truth value or None.

    Raises:
        ValueError: If the formula holds anything else.

    Example:
        >>> sizes = {"heads": 4, "head_dim": 8}
        >>> formula_value("(groups or 1) * heads * head_dim", sizes.get), formula_value("heads * width", sizes.get)
        (32, None)
    """
    return _value(_parse(formula), lookup)


@cache
def _parse(formula: str) -> ast.expr:
    return ast.parse(formula, mode="eval").body


def _value(
    node: ast.expr,
    lookup: Lookup,
) -> Value:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return lookup(node.id)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _arithmetic(node, lookup)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _value(node.operand, lookup)
    if isinstance(node, ast.BoolOp):
        return _first_or_last(node, lookup)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _comparison(node, lookup)
    raise ValueError(f"Expected a formula of numbers and names, but got {ast.unparse(node)!r}.")


def _arithmetic(
    node: ast.BinOp,
    lookup: Lookup,
) -> Value:
    left = _value(node.left, lookup)
    right = _value(node.right, lookup)
    if left is None or right is None:
        return None
    if right == 0 and isinstance(node.op, (ast.FloorDiv, ast.Mod)):
        return None
    return _OPERATIONS[type(node.op)](left, right)


def _first_or_last(
    node: ast.BoolOp,
    lookup: Lookup,
) -> Value:
    """Evaluate `or` up to the first true value, `and` up to the first false one."""
    stops_at = isinstance(node.op, ast.Or)
    value: Value = None
    for part in node.values:
        value = _value(part, lookup)
        if bool(value) is stops_at:
            break
    return value


def _comparison(
    node: ast.Compare,
    lookup: Lookup,
) -> Value:
    left = _value(node.left, lookup)
    right = _value(node.comparators[0], lookup)
    if left is None or right is None:
        return False
    if isinstance(node.ops[0], ast.Lt):
        return left < right
    if isinstance(node.ops[0], ast.Eq):
        return left == right
    raise ValueError(f"Expected `==` or `<` in a formula, but got {ast.unparse(node)!r}.")
