"""From a module to its partition: find the tied tensors, ask the rules, refuse parameters that no rule fits."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lightning_gluon.norms.views import MatrixView, covers
from lightning_gluon.partition.evidence import LayerOrder
from lightning_gluon.partition.finding import Finding
from lightning_gluon.partition.heads import OutputLayers
from lightning_gluon.partition.network import Network
from lightning_gluon.partition.overrides import Decision, Overrides, Rules
from lightning_gluon.partition.per_head import apart
from lightning_gluon.partition.place import Place
from lightning_gluon.partition.result import Partition
from lightning_gluon.partition.route import BLOCK_INDEX, Route, default_norm
from lightning_gluon.partition.routing import registered
from lightning_gluon.partition.rules import find
from lightning_gluon.roles import MATRIX_ROLES, ROLES

__all__ = ["partition"]


def partition(
    module: nn.Module,
    rules: Rules | None = None,
    strict: bool = True,
    batch: object = None,
    per_head: bool = False,
) -> Partition:
    """Give every parameter of a module a role, by what the module that owns it is and does.

        X_i <- (1 - lr * weight_decay) X_i - lr * radius[role_i] * D_i(M_i)        D_i: LMO of the norm of role_i

    - `hidden`: linear maps and convolutions between features, recurrent weights, stacked experts.
    - `input`: linear maps of dense inputs (patch embedding, first convolution).
    - `embedding`: lookup tables. A tied table is one tensor.
    - `head`: output layers.
    - `router`: maps to the experts of a mixture, of two rows and more.
    - `adapter`: both factors of a LoRA of a linear map, each with its pair.
    - `bias`: biases, norm gains, layer scales, gates of one row and other vectors.
    - `elementwise`: arrays that are no map: tokens, positions, relative-position tables, logit scales, depthwise
      filters, `A_log` of Mamba.

    Nothing is computed and nothing is changed, so the module may live on the meta device. Fused weights are read as the
    matrices they hold (`views`). Lookup tables are listed as stored, one row per entry. Frozen parameters get a route
    too, and are counted, but not given to the optimizer, and a frozen network does not decide which layer is the last.

    Names and declarations tell most input and output layers. If the order of the layers decides, it is taken from a
    forward pass on fake tensors, if there are inputs: `batch`, else the module's `example_input_array`, else a Hugging
    Face model's `dummy_inputs`. Without them, or when that pass fails, the order of registration stands in, and the
    reason says that it was inferred.

    Args:
        module: Any module, a LightningModule included; models may sit at any depth and there may be several.
        rules: Overrides, first match wins: a mapping or a list of pairs. Key: a glob over parameter names, or a module
            type (it covers everything inside). Value: a role, a dict with `role` and optional `norm`, `views`,
            `reason`, or a callable `(name, parameter, module)` that returns one of them, or None for no opinion.
            A matrix role from a glob or type leaves vectors to the built-in rules. `views` are sizes of blocks of rows,
            `MatrixView`s, or `whole`: a fused weight is one matrix then, and so has another LMO than its parts.
        strict: Raise for a parameter that no rule fits; False sends it to `elementwise` with a warning.
        per_head: Read queries, keys and values as one matrix per head, and so the parts of MLA and Mamba 2 that have
            heads. Grouped keys and values have a matrix per key head.
        batch: Inputs of `forward`, as for `example_input_array`: a tensor, a tuple of arguments or a dict of keyword
            arguments; or a batch of the data loader, whose first entry holds the inputs.

    Returns:
        The partition.

    Raises:
        TypeError: If `module` is no module, or a rule has a wrong type.
        ValueError: If the module has no parameters, a rule is wrong or matches nothing, a parameter is not
            materialised yet, or, with `strict`, no rule fits a parameter.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> p = partition(net, rules={"2.*": "elementwise"})
        >>> [p.role(f"{index}.weight") for index in (0, 2, 4)]
        ['input', 'elementwise', 'head']
        >>> p.reason("4.weight")
        'output layer: the last layer of the network, inferred from the order of its layers'
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"Expected `module` to be a torch.nn.Module, but got {type(module).__name__}.")
    tensors = _unique_parameters(module)
    if not tensors:
        raise ValueError(
            f"Expected a module with parameters, but {type(module).__name__} has none. Build its layers first "
            "(in `__init__` or `configure_model`)."
        )
    router = _RouteFinder(OutputLayers(LayerOrder(Network(module), batch)), Overrides(rules), per_head)
    routes = [router.route(names, parameter) for names, parameter in tensors]
    router.overrides.check_used([name for names, _ in tensors for name in names])
    message = _without_rule(router.unknown) if router.unknown else ""
    if message and strict:
        raise ValueError(f"{message}, or call partition(module, strict=False) to treat it as 'elementwise'.")
    if message:
        warnings.warn(f"{message}. It is treated as 'elementwise'.", stacklevel=2)
    return Partition(routes, [parameter for _, parameter in tensors])


def _unique_parameters(module: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Return every parameter tensor once, with all of its names."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(
                f"Expected every parameter to have a shape, but {name!r} of a lazy module has none yet. "
                "Run one batch through the module first."
            )
        names, _ = found.setdefault(id(parameter), ([], parameter))
        names.append(name)
    return list(found.values())


class _RouteFinder:
    """Decides about one tensor after the other and remembers those that no rule fits.

    Args:
        heads: The output layers of the network, with the evidence for them.
        overrides: The user's rules.
        per_head: Whether maps of an attention are read head by head.
    """

    def __init__(
        self,
        heads: OutputLayers,
        overrides: Overrides,
        per_head: bool,
    ) -> None:
        self.heads = heads
        self.per_head = per_head
        self.network = heads.network
        self.overrides = overrides
        self.added = registered()
        self.unknown: list[Place] = []

    def route(
        self,
        names: list[str],
        parameter: nn.Parameter,
    ) -> Route:
        """Decide about one tensor: the user's rule, one that was registered, or the built-in rules at its places."""
        shape = tuple(parameter.shape)
        places = [self.network.place(name, shape) for name in names]
        decision = self.overrides.find(places, parameter) or self.added.find(places, parameter)
        finding = self._found(places)
        if decision is not None:
            finding = _overridden(decision, finding, shape)
        elif finding is None:
            finding = self._unfit(places[0], frozen=not parameter.requires_grad)
        if finding.role in MATRIX_ROLES and not covers(finding.views, shape):  # a packed (quantised) weight, say
            finding = replace(finding, views=(MatrixView.whole(shape),))
        first, *others = names
        tied = f"; tied with {', '.join(others)}" if others else ""
        norm = decision.norm if decision is not None else None
        return Route(
            name=first,
            aliases=tuple(others),
            shape=shape,
            role=finding.role,
            norm=norm or default_norm(finding.role, finding.views),
            reason=finding.reason + tied,
            views=finding.views,
            frozen=not parameter.requires_grad,
            pair=finding.pair,
        )

    def _found(self, places: Iterable[Place]) -> Finding | None:
        """Ask the built-in rules at every place; of several answers the table of ties picks one."""
        best: Finding | None = None
        for place in places:
            finding = find(place, self.heads)
            if finding is None:
                continue
            if self.per_head:
                finding = apart(finding, place)
            if best is None or ROLES[finding.role].tie < ROLES[best.role].tie:
                best = finding
        return best

    def _unfit(
        self,
        place: Place,
        *,
        frozen: bool,
    ) -> Finding:
        """Return the finding for a parameter that no rule fits; a trained one is remembered."""
        kind = f"(parameter of {place.kind})"
        if frozen:
            return Finding("elementwise", f"frozen, and no rule fits {kind}")
        self.unknown.append(place)
        return Finding("elementwise", f"no rule fits {kind}; strict=False")


def _overridden(
    decision: Decision,
    finding: Finding | None,
    shape: tuple[int, ...],
) -> Finding:
    """Put a user's fields over those of the built-in rules; matrices stay as they were found."""
    if decision.role not in MATRIX_ROLES:
        return Finding(decision.role, decision.reason)
    known = finding.views if finding is not None else ()
    plain = (MatrixView.whole(shape),)  # `(out, in)`, or a batch of such matrices
    pair = finding.pair if finding is not None else None
    return Finding(decision.role, decision.reason, decision.views or known or plain, pair)


def _without_rule(places: list[Place]) -> str:
    """Name the parameters that no rule fits, those of repeated blocks once, and the remedy."""
    alike: dict[str, list[Place]] = {}
    for place in places:
        alike.setdefault(BLOCK_INDEX.sub("*", place.name), []).append(place)
    told = []
    keys = []
    for key, members in alike.items():
        first = members[0]
        text = f"{first.name!r} with shape {first.shape}, a parameter of {first.kind}"
        several = len(members) > 1
        told.append(f"{text} ({len(members)} of {key!r})" if several else text)
        keys.append(key if several else first.name)
    rules = ", ".join(f"{key!r}: role" for key in keys)
    return (
        f"Expected a rule for every parameter, but none fits {'; '.join(told)}. "
        f"Say what each is with rules={{{rules}}}, role one of {', '.join(ROLES)}"
    )
