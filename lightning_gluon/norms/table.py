"""The norms by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from lightning_gluon.norms.balanced import Balanced
from lightning_gluon.norms.base import Norm
from lightning_gluon.norms.clipped import ClippedRow
from lightning_gluon.norms.entries import Max, Sign
from lightning_gluon.norms.factor import Factor
from lightning_gluon.norms.gated import GatedSpectral
from lightning_gluon.norms.relative import Relative
from lightning_gluon.norms.slices import CentredRow, ColumnNorm, Euclidean, Identity, RMSVector, RowNorm
from lightning_gluon.norms.spectral import Alternating, Spectral, SpectralConv
from lightning_gluon.options import check_registered
from lightning_gluon.registry import add_row

NORMS: dict[str, type[Norm]] = {
    "spectral": Spectral,
    "spectral_conv": SpectralConv,
    "alternating": Alternating,
    "balanced": Balanced,
    "relative": Relative,
    "factor": Factor,
    "gated": GatedSpectral,
    "sign": Sign,
    "row": RowNorm,
    "column": ColumnNorm,
    "centred_row": CentredRow,
    "clipped_row": ClippedRow,
    "rms": RMSVector,
    "euclidean": Euclidean,
    "max": Max,
    "identity": Identity,
}

# Options that make another norm of a plain spectral one.
REFINEMENTS = {"equilibrate": "balanced", "balance": "balanced", "gate": "gated"}


def make_norm(name: str, **options: object) -> Norm:
    """Return the norm of that name, with `lmo(G) = argmax_{||D|| <= 1} <G, D>`.

    Shapes: none of its own; those of points are with each norm.

    Args:
        name: One of `NORMS`.
        **options: Its options, e.g. `scaling="muon"` for `spectral`.

    Returns:
        The norm.

    Raises:
        ValueError: If the name is unknown or an option is invalid.
        TypeError: If the norm has no such option.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> make_norm("spectral", scaling="muon").scale(8, 2)
        2.0
    """
    if name not in NORMS:
        raise ValueError(f"Expected `norm` to be one of {', '.join(NORMS)}, but got {name!r}. Check the spelling.")
    kind = NORMS[name]
    known: list[str] = [own.name for own in fields(kind)] if is_dataclass(kind) else []
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"Expected options of norm {name!r} to be among {known}, but got {unknown}. Remove them.")
    return kind(**options)


def norm_of(options: Mapping[str, Any]) -> Norm:
    """Return the norm of a parameter group, with its options.

    Args:
        options: The group: `norm`, and the options that this norm declares.

    Returns:
        The norm.
    """
    kind = NORMS[options["norm"]]
    return kind(**{name: options[option] for option, name in kind.options.items()})


def refined(options: Mapping[str, Any]) -> str:
    """Return the name of a group's norm: that of a refinement, if a spectral group has an option of one.

    Args:
        options: The group: `norm`, and any options.

    Returns:
        The name.

    Raises:
        ValueError: If it has options of two refinements.

    Example:
        >>> refined({"norm": "spectral", "equilibrate": "rows"}), refined({"norm": "sign", "equilibrate": "rows"})
        ('balanced', 'sign')
    """
    asked = {name: option for option, name in REFINEMENTS.items() if options.get(option)}
    if NORMS[options["norm"]] is not Spectral or not asked:
        return options["norm"]
    if len(asked) > 1:
        both = " and ".join(f"`{option}`" for option in asked.values())
        raise ValueError(f"Expected one refinement of the spectral norm, but got {both}. Leave one of them out.")
    return next(iter(asked))


def register_norm(name: str, norm: type[Norm]) -> None:
    """Add a norm from outside the package, for methods, groups and rules of the partition.

        X <- (1 - lr * weight_decay) X - lr * radius * D(M),        D(M) = argmax_{||D|| <= 1} <M, D>

    Shapes: its `lmo_` gets stacks of `(count, m, n)`, see `lightning_gluon.norms.Norm`.

    Args:
        name: Its name.
        norm: A subclass of `lightning_gluon.norms.Norm`; options that it reads and nobody else does are registered
            before by `lightning_gluon.register_option`.

    Raises:
        TypeError: If it is no class of norms.
        ValueError: If the name is taken, or an option is unknown.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> class Scaled(Spectral):
        ...     turns = False
        >>> register_norm("scaled", Scaled)
        >>> make_norm("scaled").turns, NORMS.pop("scaled").__name__
        (False, 'Scaled')
    """
    if not (isinstance(norm, type) and issubclass(norm, Norm)):
        raise TypeError(f"Expected `norm` to be a subclass of `lightning_gluon.norms.Norm`, but got {norm!r}.")
    check_registered(f"Norm {name!r}", norm.options)
    add_row(NORMS, "norm", name, norm)
