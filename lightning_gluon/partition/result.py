"""The answer of `partition`: every unique parameter of a module with its route."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from lightning_gluon.partition.route import Route
from lightning_gluon.roles import ROLES

if TYPE_CHECKING:  # rich is loaded when a table is shown
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["Partition"]

WIDTH = 120  # of the table where there is no terminal; on less, one line per parameter would break its name


class Partition:
    """Roles, reasons and matrices of all parameters of a module.

    Iterating gives `(route, parameter)` of the trainable ones; `print` shows the table.

        norm of the model = max_i ||X_i|| / radius_i        one norm per parameter i, by its role

    Shapes: parameters of any shape; a parameter that holds matrices is read as one or more of shape `(out, in)`.

    Args:
        routes: One route per unique parameter tensor, in the module's order.
        parameters: The parameters, in the same order.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> from torch import nn
        >>> from lightning_gluon.partition import partition
        >>> model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(4, 8)), "head": nn.Linear(8, 2)})
        >>> p = partition(model)
        >>> p.role("encoder.0.weight"), p.role("head.weight"), p.views("head.weight")
        ('hidden', 'head', [(2, 8)])
        >>> p.reason("head.bias"), p.route("head.bias").norm
        ('bias of Linear', 'rms')
        >>> p.find(model["head"].weight).name, p.parameter("head.weight").shape
        ('head.weight', torch.Size([2, 8]))
        >>> [route.name for route, _ in p.parameters()][:2], list(p.by_role())
        (['encoder.0.weight', 'encoder.0.bias'], ['hidden', 'head', 'bias'])
        >>> type(p.table(width=80)).__name__
        'Table'
    """

    def __init__(self, routes: list[Route], parameters: list[nn.Parameter]) -> None:
        names = [route.name for route in routes]
        self.routes = dict(zip(names, routes, strict=True))
        self._parameters = dict(zip(names, parameters, strict=True))
        self._by_id = dict(zip(map(id, parameters), names, strict=True))
        self._first: dict[str, str] = {}
        for route in routes:
            for name in route.names:
                self._first[name] = route.name

    def route(self, name: str) -> Route:
        """Return the route of a parameter, by any of its names.

        Args:
            name: Qualified name as in `named_parameters`, an alias of a tied tensor included.

        Returns:
            The route.

        Raises:
            KeyError: If the module has no parameter of that name.
        """
        if name not in self._first:
            close = difflib.get_close_matches(
                name,
                self._first,
                n=3,
                cutoff=0.3,
            )
            hint = ""
            if close:
                hint = f" Did you mean {', '.join(map(repr, close))}?"
            raise KeyError(f"Expected the name of a parameter of the module, but got {name!r}.{hint}")
        return self.routes[self._first[name]]

    def role(self, name: str) -> str:
        """Return the role of a parameter, one of `lightning_gluon.roles.ROLES`.

        Args:
            name: Qualified name, as for `route`.

        Raises:
            KeyError: If the module has no parameter of that name.
        """
        return self.route(name).role

    def reason(self, name: str) -> str:
        """Return the reason for a parameter's role, in words.

        Args:
            name: Qualified name, as for `route`.

        Raises:
            KeyError: If the module has no parameter of that name.
        """
        return self.route(name).reason

    def views(self, name: str) -> list[tuple[int, int]]:
        """Return the shapes `(out, in)` of the matrices a parameter holds; empty for vectors and elementwise arrays.

        Args:
            name: Qualified name, as for `route`.

        Raises:
            KeyError: If the module has no parameter of that name.
        """
        return self.route(name).matrices

    def parameter(self, name: str) -> nn.Parameter:
        """Return the parameter itself.

        Args:
            name: Qualified name, as for `route`.

        Raises:
            KeyError: If the module has no parameter of that name.
        """
        return self._parameters[self.route(name).name]

    def find(self, parameter: nn.Parameter) -> Route | None:
        """Return the route of a tensor by identity.

        Args:
            parameter: The tensor.

        Returns:
            The route, or None if the tensor is not the module's.
        """
        name = self._by_id.get(id(parameter))
        return None if name is None else self.routes[name]

    def parameters(self) -> Iterator[tuple[Route, nn.Parameter]]:
        """Yield `(route, parameter)` of the parameters that were trainable, in the module's order."""
        for name, route in self.routes.items():
            if not route.frozen:
                yield route, self._parameters[name]

    __iter__ = parameters

    def by_role(self) -> dict[str, list[Route]]:
        """Return the trainable routes of each role that occurs, in the order of `ROLES`."""
        groups: dict[str, list[Route]] = {}
        for role in ROLES:
            for route, _ in self.parameters():
                if route.role == role:
                    groups.setdefault(role, []).append(route)
        return groups

    def __len__(self) -> int:
        """Return the number of unique trainable tensors."""
        return sum(not route.frozen for route in self.routes.values())

    def __contains__(self, name: object) -> bool:
        """Tell whether the module has a parameter of that name."""
        return name in self._first

    def table(self, width: int = WIDTH) -> RenderableType:
        """Return the table that `print` shows.

        Args:
            width: Columns of the terminal, in characters. On few the table has fewer columns, or is a list.
        """
        from lightning_gluon.partition.table import render

        routes = list(self.routes.values())
        return render(routes, width)

    def __rich_console__(
        self,
        console: Console,
        options: ConsoleOptions,
    ) -> RenderResult:
        """Let rich print the table."""
        yield self.table(options.max_width)

    def __str__(self) -> str:
        """Return the table as text, as wide as the terminal (or `COLUMNS`), 120 columns if there is none."""
        from rich.console import Console

        from lightning_gluon.partition.table import to_text

        console = Console()
        known = console.is_terminal or "COLUMNS" in os.environ
        width = console.width if known else WIDTH
        return to_text(self.table(width), width)

    def __repr__(self) -> str:
        """Return a line with the number of tensors per role."""
        parts = []
        for role, routes in self.by_role().items():
            parts.append(f"{role}={len(routes)}")
        frozen = len(self.routes) - len(self)
        if frozen:
            parts.append(f"frozen={frozen}")
        return f"Partition({', '.join(parts)})"
