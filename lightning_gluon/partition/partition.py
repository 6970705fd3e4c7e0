"""From a module to its partition: find the tied tensors, ask the rules, refuse what no rule fits."""

from __future__ import annotations

import warnings

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lightning_gluon.norms.views import MatrixView, covers
from lightning_gluon.partition.evidence import Evidence
from lightning_gluon.partition.network import Network, Site
from lightning_gluon.partition.overrides import Overrides, Rules
from lightning_gluon.partition.result import Partition
from lightning_gluon.partition.route import MATRIX_ROLES, ROLES, Route, default_norm
from lightning_gluon.partition.rules import Case, Finding, decide
from lightning_gluon.partition.table import NUMBER

__all__ = ["partition"]

_TIED_ORDER = ("embedding", "input", "head", "hidden", "elementwise", "bias")  # a tied table counts as a table


def partition(module: nn.Module, rules: Rules | None = None, strict: bool = True) -> Partition:
    """Give every parameter of a module a role, by what the module that owns it is and does.

    - `hidden`: linear maps and convolutions between features, recurrent weights, routers, stacked experts, LoRA.
    - `input`: linear maps of dense inputs (patch embedding, first convolution).
    - `embedding`: lookup tables. A tied table is one tensor.
    - `head`: output layers.
    - `bias`: biases, norm gains, layer scales and other vectors.
    - `elementwise`: arrays that are no map: tokens, positions, relative-position tables, logit scales, depthwise
      filters, `A_log` of Mamba.

    Nothing is run and nothing is changed, so the module may live on the meta device. Fused weights are read as the
    matrices they hold (`views`). Frozen parameters get a route too, and are counted, but not given to the optimizer.
    Lookup tables are listed as stored, one row per entry.

    Args:
        module: Any module, a LightningModule included; models may sit at any depth and there may be several.
        rules: Overrides, first match wins: a mapping or a list of pairs. Key: a glob over parameter names, or a module
            type (it covers everything inside). Value: a role, a dict with `role` and optional `norm`, `views`,
            `reason`, or a callable `(name, parameter, module)` that returns one of them, or None for no opinion.
            A matrix role from a glob or type leaves vectors to the built-in rules.
        strict: Raise for a parameter that no rule fits; False sends it to `elementwise` with a warning.

    Returns:
        The partition.

    Raises:
        TypeError: If `module` is no module, or a rule has a wrong type.
        ValueError: If the module has no parameters, a rule is wrong or matches nothing, a parameter is not
            materialised yet, or, with `strict`, no rule fits a parameter.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> p = partition(net, rules={"2.*": "elementwise"})
        >>> [p.role(f"{index}.weight") for index in (0, 2, 4)]
        ['input', 'elementwise', 'head']
        >>> p.reason("4.weight")
        'output layer: the last layer of the network'
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"Expected `module` to be a torch.nn.Module, but got {type(module).__name__}.")
    tensors = _unique_parameters(module)
    if not tensors:
        raise ValueError(
            f"Expected a module with parameters, but {type(module).__name__} has none. Build its layers first "
            "(in `__init__` or `configure_model`)."
        )
    network, overrides = Network(module), Overrides(rules)
    evidence = Evidence(network)
    routes = []
    unknown: list[Site] = []
    for names, parameter in tensors:
        sites = [network.site(name) for name in names]
        routes.append(_route(sites, parameter, evidence, overrides, unknown))
    overrides.check_used([name for names, _ in tensors for name in names])
    if unknown:
        message = _without_rule(unknown, {route.name: route.shape for route in routes})
        if strict:
            raise ValueError(f"{message}, or call partition(module, strict=False) to treat it as 'elementwise'.")
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
        found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(found.values())


def _route(
    sites: list[Site], parameter: nn.Parameter, evidence: Evidence, overrides: Overrides, unknown: list[Site]
) -> Route:
    """Decide about one tensor: the user's rule, else the built-in rules at each of its places, else it is unknown."""
    shape, frozen = tuple(parameter.shape), not parameter.requires_grad
    override = overrides.find(sites, parameter)
    findings = [f for site in sites if (f := decide(Case(site, shape, evidence))) is not None]
    finding = min(findings, key=lambda f: _TIED_ORDER.index(f.role), default=None)
    norm = None
    if override is not None:
        finding, norm = _overridden(override, finding, shape), override.get("norm")
    elif finding is None:
        kind = f"(parameter of {type(sites[0].owner).__name__})"
        finding = Finding(
            "elementwise", f"frozen, and no rule fits {kind}" if frozen else f"no rule fits {kind}; strict=False"
        )
        if not frozen:
            unknown.append(sites[0])
    if not covers(finding.views, shape) and finding.role in MATRIX_ROLES:  # a packed (quantised) weight, say
        finding = Finding(finding.role, finding.reason, (MatrixView.whole(shape),))
    reason = finding.reason + (f"; tied with {', '.join(site.name for site in sites[1:])}" if len(sites) > 1 else "")
    return Route(
        name=sites[0].name,
        aliases=tuple(site.name for site in sites[1:]),
        shape=shape,
        role=finding.role,
        norm=norm or default_norm(finding.role, finding.views),
        reason=reason,
        views=finding.views,
        frozen=frozen,
    )


def _overridden(override: dict, finding: Finding | None, shape: tuple[int, ...]) -> Finding:
    """Put a user's fields over what the built-in rules found; matrices stay as they were found."""
    role = override["role"]
    views: tuple[MatrixView, ...] = ()
    if role in MATRIX_ROLES:
        known = finding.views if finding is not None else ()
        views = override.get("views") or known or _plain_views(shape)
    return Finding(role, override["reason"], views)


def _plain_views(shape: tuple[int, ...]) -> tuple[MatrixView, ...]:
    """Read an array that no rule knew as `(out, in)` or as a batch of such matrices."""
    return (MatrixView.whole(shape),)


def _without_rule(sites: list[Site], shapes: dict[str, tuple[int, ...]]) -> str:
    """Name the parameters that no rule fits, those of repeated blocks once, and say what to do about them."""
    alike: dict[str, list[Site]] = {}
    for site in sites:
        alike.setdefault(NUMBER.sub("*", site.name), []).append(site)
    keys = [pattern if len(members) > 1 else members[0].name for pattern, members in alike.items()]
    listed = []
    for key, members in zip(keys, alike.values(), strict=True):
        first = members[0]
        text = f"{first.name!r} with shape {shapes[first.name]}, a parameter of {type(first.owner).__name__}"
        listed.append(f"{text} ({len(members)} of {key!r})" if len(members) > 1 else text)
    return (
        f"Expected a rule for every parameter, but none fits {'; '.join(listed)}. "
        f"Say what each is with rules={{{', '.join(f'{key!r}: role' for key in keys)}}}, role one of {', '.join(ROLES)}"
    )
