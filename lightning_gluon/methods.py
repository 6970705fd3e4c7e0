"""The table `method = norm x estimator x radius`, one rule per role. Adding a method is adding a row.

Radii are relative to the hidden radius, which `lr` itself is. Where the defaults come from:

* Gluon's family: tables at 25x and vectors at 0.1x hidden, the best of a sweep on two small tasks (a byte-level GPT and
  a ViT): against vectors at 1x and tables at 10x it lowered the validation loss from 1.641 to 1.560 and from 1.260 to
  1.164.
* Routers: 25x as for other layers before a softmax; the loss of two small mixtures is 1.047, at 3x 1.107 (three seeds,
  `benchmarks.routers`).
* Scion: hidden 50, tied table 3000 in the authors' NanoGPT setting (2502.07529), hence a ratio of 60. The ball of the
  constrained form is `radius / weight_decay`, hence a weight decay of 1/50 for a hidden radius of 1.
* Muon: its companion AdamW runs at 0.015 of Muon's learning rate, 3e-4 to 0.02 in K. Jordan's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.norms.table import NORMS
from lightning_gluon.registry import add_row
from lightning_gluon.roles import MATRIX_ROLES, ROLES

__all__ = ["DEFAULT_METHOD", "METHODS", "Method", "Rule"]


@dataclass(frozen=True)
class Rule:
    """Step of one role: its norm, its estimator and its radius relative to the hidden one.

        X <- (1 - lr * weight_decay) X - lr * radius * D(M),        D(M) = argmax_{||D|| <= 1} <M, D>

    Args:
        norm: The norm of the ball, a name of `lightning_gluon.norms.NORMS`.
        estimator: The recursion of `M`, a name of `lightning_gluon.estimators.recursions.ESTIMATORS`.
        radius: Length of a step in units of the hidden one.
        scaling: Scaling of a spectral norm; default: that of the norm.
        options: Options of the norm and the estimator that differ from their defaults.
        weight_decay: Decay of the role; default: the method's.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> Rule("sign", "mvr1", radius=25.0).scaling is None
        True
    """

    norm: str
    estimator: str = "ema"
    radius: float = 1.0
    scaling: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float | None = None


@dataclass(frozen=True)
class Method:
    """One row of the method table: `method = norm x estimator x radius`, a `Rule` for every role.

    Shapes: none; radii are in units of the hidden radius, `weight_decay` in units of 1 / lr.

    Args:
        summary: One line for people.
        source: Where the method comes from.
        rules: A rule for every role.
        momentum: Default weight on the old momentum.
        weight_decay: Default decoupled weight decay, in units of 1 / lr.
        start: What the momentum starts at: `"gradient"` (the first one) or `"zero"`.
        theory: Exponents `(radius, momentum)` of the decaying schedule of the theory, `t ~ (k+1)^-radius` and
            `1 - b ~ (k+1)^-momentum`; `None` without a theory.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> METHODS["muon"].rules["hidden"].scaling, METHODS["muon"].rules["head"].estimator
        ('muon', 'adamw')
    """

    summary: str
    source: str
    rules: Mapping[str, Rule]
    momentum: float = 0.9
    weight_decay: float = 0.0
    start: str = "gradient"
    theory: tuple[float, float] | None = None

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the norms that the roles use, without repeats."""
        return tuple(dict.fromkeys(rule.norm for rule in self.rules.values()))

    @property
    def needs_length(self) -> bool:
        """True if an estimator needs to know how many steps the training has."""
        return any(ESTIMATORS[name].length for name in self.estimators)

    @property
    def estimators(self) -> tuple[str, ...]:
        """Names of the estimators that the roles use, without repeats."""
        return tuple(dict.fromkeys(rule.estimator for rule in self.rules.values()))


def _layerwise(
    estimator: str,
    *,
    matrix: str = "spectral",
    table: float = 25.0,
    router: float | None = 25.0,
    vector: float = 0.1,
    **options: object,
) -> dict[str, Rule]:
    """Gluon's geometry: spectral matrices, sign tables, RMS vectors, one estimator for all."""
    # A router ends in a softmax over its experts, which does not see a shift of all rows: hence centred ones
    # (arXiv 2605.18106). Rows of papers that say nothing of routers step them as hidden matrices.
    hidden = Rule(matrix, estimator, 1.0, "rms", options)
    centred = {**options, "row_scaling": "sign"}
    return {
        "hidden": hidden,
        # A dense input layer is a map: behind a one-hot input one row acts at a time, behind pixels all entries add up.
        # ViT for CIFAR-10, 400 steps: evaluation loss 1.80 with signs at 25, 1.59, 1.58, 1.59 spectral at 0.1, 0.3, 1.
        "input": Rule(matrix, estimator, 0.3, "rms", options),
        "embedding": Rule("sign", estimator, table, None, options),
        "adapter": Rule("factor", estimator, 1.0, "rms", options),
        "head": Rule("sign", estimator, table, None, options),
        "router": hidden if router is None else Rule("centred_row", estimator, router, None, centred),
        "bias": Rule("rms", estimator, vector, None, options),
        "elementwise": Rule("rms", estimator, vector, None, options),
    }


def _uniform(norm: str, estimator: str = "ema", **options: object) -> dict[str, Rule]:
    """One norm and one radius for every role."""
    return {role: Rule(norm, estimator, 1.0, None, options) for role in ROLES}


def _with_adamw(
    estimator: str, *, scaling: str, radius: float = 0.015, norm: str = "spectral", **options: object
) -> dict[str, Rule]:
    """Spectral LMOs for hidden matrices, routers and adapters, AdamW for the rest (betas of K. Jordan's companion)."""
    adamw = Rule("identity", "adamw", radius, None, {"betas": (0.9, 0.95), "eps": 1e-10})
    matrix = Rule(norm, estimator, 1.0, scaling, options)
    of_factors = {name: value for name, value in options.items() if name != "retract"}  # the second starts at zero
    factor = Rule("factor", estimator, 1.0, scaling, of_factors)
    return dict.fromkeys(ROLES, adamw) | {"hidden": matrix, "router": matrix, "adapter": factor}


def _symmetric() -> dict[str, Rule]:
    """Rows of length 1 for tables, centred ones in front of a softmax; no decay of either."""
    rows = {"row_scaling": "none"}
    # Rates of the authors relative to that of Muon: .5, 5e-3 and 2e-2 on Qwen3-0.6B, 7.5e-4 and 5e-3 on OLMoE.
    return {
        **_with_adamw("ema", scaling="muon"),
        "embedding": Rule("row", "ema", 25.0, None, rows, weight_decay=0.0),
        "head": Rule("centred_row", "ema", 0.25, None, rows, weight_decay=0.0),
        "router": Rule("centred_row", "ema", 0.15, None, rows, weight_decay=0.0),
    }


def _without_adam() -> dict[str, Rule]:
    """Muon's matrices beside clipped rows for tables and vectors over their RMS."""
    matrix = Rule("spectral", "nesterov", 1.0, "muon")
    # (3000 / 50) / 2 and 3e-4 / .02, relative to Muon's rate.
    table = Rule("clipped_row", "ema", 30.0)
    vector = Rule("rms", "ema", 0.015)
    return {
        **dict.fromkeys(ROLES, vector),
        **dict.fromkeys(MATRIX_ROLES, matrix),
        "embedding": table,
        "head": table,
        "adapter": replace(matrix, norm="factor"),
    }


GLUON_PAPER = "Gluon, arXiv 2505.13416"
MVR_PAPER = "Gluon-MVR, arXiv 2512.16598"
KERNELS_PAPER = "momentum kernels, arXiv 2608.22994"
TRACK = "modded-nanogpt, track 3"
COMPRESSED_GLUON = "after communication-efficient Gluon, arXiv 2604.10689"
IGT = "LMO-IGT, arXiv 2605.05577"
STORM_RATE = (2 / 3, 2 / 3)  # radius and 1 - b of MVR: derived by matching rates, and as LiMuon prints them

METHODS: dict[str, Method] = {
    "gluon": Method(
        "layer-wise LMO with momentum, unconstrained", GLUON_PAPER, _layerwise("ema"), theory=(3 / 4, 1 / 2)
    ),
    "gluon-nesterov": Method("Gluon on Muon's estimator, Nesterov's momentum", GLUON_PAPER, _layerwise("nesterov")),
    "scion": Method(
        "layer-wise LMO over a norm ball, constrained",
        "Scion, arXiv 2502.07529",
        _layerwise("ema", table=60.0, vector=1.0, router=None),
        weight_decay=0.02,
        start="zero",
    ),
    "gluon-dual": Method("Gluon on a memory that shrinks: two weights, one buffer", KERNELS_PAPER, _layerwise("dual")),
    "gluon-mix": Method("Gluon on a memory that shrinks: a mixture of averages", KERNELS_PAPER, _layerwise("mix")),
    "muon": Method(
        "orthogonalised Nesterov momentum, AdamW beside it",
        "K. Jordan, 2024",
        _with_adamw("nesterov", scaling="muon"),
        momentum=0.95,
        start="zero",
    ),
    "muon-dual": Method(
        "Muon on a memory that shrinks: two weights, one buffer",
        KERNELS_PAPER,
        _with_adamw("dual", scaling="muon", kernel_before="nesterov"),
        momentum=0.95,
        start="zero",
    ),
    "gluon-mvr1": Method("Gluon on STORM's momentum", MVR_PAPER, _layerwise("mvr1"), theory=STORM_RATE),
    "gluon-mvr2": Method("Gluon on the EMA of a STORM estimate", MVR_PAPER, _layerwise("mvr2"), theory=STORM_RATE),
    "gluon-mvr3": Method("mvr2 plus transport (our reading)", MVR_PAPER, _layerwise("mvr3"), theory=STORM_RATE),
    "muon-mvr": Method(
        "Muon on STORM's momentum", MVR_PAPER, _with_adamw("mvr1", scaling="muon"), momentum=0.95, theory=STORM_RATE
    ),
    "limuon": Method(
        "Gluon on STORM's momentum, carried at low rank",
        "LiMuon, arXiv 2509.14562",
        _layerwise("limuon", router=None),
        theory=STORM_RATE,
    ),
    "gluon-lowrank": Method(
        "Gluon with its momentum carried at low rank: LiMuon's memory, one gradient",
        "LiMuon, arXiv 2509.14562",
        _layerwise("limuon", gamma=0.0, rank=16),
    ),
    "mars": Method(  # at zero: the first gradient is clipped like all others, and would else outweigh them
        "Gluon on MARS' scaled correction",
        "MARS, arXiv 2411.10438",
        _layerwise("mars", router=None),
        momentum=0.95,
        start="zero",
    ),
    "mars-approximate": Method(
        "MARS with the last minibatch's gradient for c_old",
        "MARS, arXiv 2411.10438",
        _layerwise("mars_approximate", router=None),
        momentum=0.95,
        start="zero",
    ),
    "gluon-igt": Method("Gluon on gradients at the transported point", IGT, _layerwise("igt")),
    # A fifth of the way: the best of .1, .2 and .3 on CIFAR-10 at 640 gradients (one seed: 1.453, for 1.467, 1.482 and
    # gluon's 1.495 at the same rate). At 160 gradients and on WikiText-2 .1 is level or a little ahead, and .3 behind.
    "gluon-lookahead": Method("Gluon on gradients a share of the way there", IGT, _layerwise("igt", lookahead=0.2)),
    "gluon-ema-nesterov": Method("Gluon ahead along an average of its steps", TRACK, _layerwise("averaged")),
    "gluon-anchor": Method("Gluon ahead of an average of its weights, late", TRACK, _layerwise("anchored")),
    "lionmuon": Method(
        "spectral every second step, signs between; two momenta",
        "LionMuon, arXiv 2605.19811",
        _layerwise("dual_ema", matrix="alternating", router=None, every=2),
    ),
    # Moonlight's scaling makes the steps of Muon as large as AdamW's: one learning rate for both. That is our reading.
    "muoneq": Method(
        "Muon of a momentum with rows of equal length",
        "MuonEq, arXiv 2603.28254",
        _with_adamw("nesterov", scaling="moonlight", radius=1.0, norm="balanced", equilibrate="rows"),
        momentum=0.95,
        weight_decay=0.1,
        start="zero",
    ),
    # Scaling, momentum and companion of these two are those of our `muon`, not the authors'.
    "normuon": Method(
        "Muon with rows of equal length after the polar factor",
        "NorMuon, arXiv 2510.05491",
        _with_adamw("nesterov", scaling="muon", norm="balanced", balance="rows"),
        momentum=0.95,
        start="zero",
    ),
    "aurora": Method(
        "Muon, its momentum equilibrated along the longer side by two passes",
        "Aurora, as compared in arXiv 2609.39114",
        _with_adamw("nesterov", scaling="muon", norm="balanced", equilibrate="aurora"),
        momentum=0.95,
        start="zero",
    ),
    # Everything but the gate is that of our `muon`. The threshold is not known to us, so the row asks for it.
    "mimuon": Method(
        "Muon that leaves a small momentum as it is: asks for `gate`",
        "MiMuon, arXiv 2605.19619",
        _with_adamw("nesterov", scaling="muon", norm="gated", gate=None),
        momentum=0.95,
        start="zero",
    ),
    # AdamW of vectors is the companion of our `muon`: the authors' rate for it is not told apart from their baseline's.
    "symmetry-compatible": Method(
        "Muon beside rows of equal length for tables, centred for heads and routers",
        "Symmetry-compatible optimizers, arXiv 2605.18106",
        _symmetric(),
        momentum=0.95,
        weight_decay=0.001,
        start="zero",
    ),
    "af-muon": Method(
        "Muon without Adam: rows of bounded entries for tables, vectors over their RMS",
        "AF-Muon, 2026",
        _without_adam(),
        momentum=0.95,
        start="zero",
    ),
    # Momentum and companion are those of our `muon`; lr .018 in the record runs. No decay: the sphere keeps the size.
    "hyperball": Method(
        "Muon on spheres: steps relative to a matrix' Frobenius norm, which stays",
        "Hyperball, arXiv 2606.16899",
        _with_adamw("nesterov", scaling="none", norm="relative", retract="sphere"),
        momentum=0.95,
        start="zero",
    ),
    "ef21-muon": Method(
        "Gluon on momenta that workers send compressed", "EF21-Muon, arXiv 2510.00643", _layerwise("ef21")
    ),
    # The update lines of communication-efficient Gluon were not visible to us: these two are EF21-Muon with another M.
    "ef21-mvr-reading": Method("EF21-Muon on STORM's momentum (our reading)", COMPRESSED_GLUON, _layerwise("ef21_mvr")),
    "ef21-sarah-reading": Method("EF21-Muon on SARAH's (our reading)", COMPRESSED_GLUON, _layerwise("ef21_sarah")),
    "signsgd": Method("sign of the gradient", "SignSGD, arXiv 2605.06615", _uniform("max"), momentum=0.0),
    "normalized-sgd": Method(
        "gradient over its Euclidean norm, per layer", "folklore", _uniform("euclidean"), momentum=0.0
    ),
    "sgd": Method("the gradient itself: no ball at all", "folklore", _uniform("identity"), momentum=0.0),
    "adamw": Method("the baseline", "AdamW, arXiv 1711.05101", _uniform("identity", "adamw"), weight_decay=0.01),
}


# Used where no method is named; the choice follows the table of docs/estimators.md.
DEFAULT_METHOD = "gluon-nesterov"


def register_method(name: str, method: Method) -> None:
    """Add a method from outside the package: a name for `method=` everywhere, on the command line too.

        method = norm x estimator x radius        one `Rule` per role

    Shapes: none; radii are in units of the hidden radius.

    Args:
        name: Its name.
        method: The row, with a rule for every role.

    Raises:
        TypeError: If it is no `Method`.
        ValueError: If the name is taken, a role has no rule, or a rule names a norm or an estimator that is not there.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> from dataclasses import replace
        >>> register_method("row-gluon", replace(METHODS["gluon"], summary="rows for tables"))
        >>> METHODS.pop("row-gluon").summary
        'rows for tables'
    """
    if not isinstance(method, Method):
        raise TypeError(f"Expected `method` to be a `Method`, but got {type(method).__name__}.")
    lacking = [role for role in ROLES if role not in method.rules]
    if lacking:
        raise ValueError(f"Method {name!r} has no rule for {', '.join(lacking)}. Give a rule for every role.")
    for rule in method.rules.values():
        if rule.norm not in NORMS or rule.estimator not in ESTIMATORS:
            raise ValueError(
                f"Method {name!r} asks for norm {rule.norm!r} and estimator {rule.estimator!r}, which are not both "
                "there. Register them before by `lightning_gluon.register_norm` and `register_estimator`."
            )
    add_row(METHODS, "method", name, method)
