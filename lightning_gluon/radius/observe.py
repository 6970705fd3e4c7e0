"""The evidence a rule is shown before a step, and the measurements it may ask for.

A rule lists the measurements it needs, as classes: `needs = (GroupReadings,)`. Each one contributes fields of the
`Observation`. A new measurement is a subclass of `Measurement` and, if its result is new, a field of `Observation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.radius.radii import peak_lr, stepped_by_adamw
from lightning_gluon.radius.saved import Saved, SavedState
from lightning_gluon.smoothness.readings import Pair, Raw, combine, derive, measure
from lightning_gluon.step.layers import Layer
from lightning_gluon.valid import number

Fields: TypeAlias = dict[str, Any]  # of an `Observation`, by name


@dataclass(frozen=True)
class Observation:
    """The evidence a rule is shown before a step; each measurement that the rule needs fills some fields.

        radius_i[k] = limits(rule(observation[k]))

    Shapes: plain numbers.

    Args:
        step: Steps taken so far.
        total_steps: Steps in all; `None` if nobody knows.
        momentum: Weight on the old momentum.
        variance_reduced: Whether the method takes the second gradient.
        agreement: Agreement of this sample's gradient with the last step, in [-1, 1]; `None` before the second step.
        reference_agreement: The same with this sample's gradient before the last step (`c_old`), over the same norms;
            `None` without one.
        adamw_agreement: Agreement over the groups that AdamW steps next to an LMO; `None` if there are none.
        loss: Training loss of this step's sample.
        warming_up: Share of its peak that a rising learning-rate schedule has reached; 1 when it is not rising.
        base: Initial radii by layer name.
        model: Value at the weights of the linear model that the momentum stands for; `None` if it was not measured.
        model_weight: Sum of the weights that the model gives to past losses; 1 unless its momentum started at zero.
        layers: Readings by group or layer name (see `lightning_gluon.smoothness.readings`), with `lr` (the peak of the
            group's schedule) and `radius`; empty on steps without a sample.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> Observation(step=10, agreement=0.5).loss is None
        True
    """

    step: int
    total_steps: int | None = None
    momentum: float = 0.9
    variance_reduced: bool = False
    agreement: float | None = None
    reference_agreement: float | None = None
    adamw_agreement: float | None = None
    loss: float | None = None
    warming_up: float = 1.0
    base: Mapping[str, float] = field(default_factory=dict)
    model: float | None = None
    model_weight: float = 1.0
    layers: Mapping[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class StepRecord:
    """The raw material of measurements, between a backward pass and its step.

    Args:
        loss: Training loss of the step's sample, a 0-dim tensor.
        pairs: Layers at this iterate and the one before, on steps with a sample of the smoothness; else empty.
        mean: Waits for numbers on the device and returns their means over all ranks.
    """

    loss: Tensor
    pairs: list[Pair] = field(default_factory=list)
    mean: Callable[[Tensor], list[float]] = Tensor.tolist


class WindowLoss:
    """Training loss of an accumulation window; a tensor, so that nobody waits for it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin a window."""
        self.total = torch.zeros(())
        self.parts = 0

    def add(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch, divided by the length of a whole window."""
        self.total = self.total.to(loss.device) + loss
        self.parts += 1

    def mean(self, window: int | None) -> Tensor:
        """Return the mean over the micro-batches seen.

        Args:
            window: The length that the parts were divided by, `None` if they were not. The last window of an epoch may
                be shorter.

        Returns:
            A 0-dim tensor.
        """
        if window is None or not self.parts:
            return self.total
        return self.total * (window / self.parts)

    def state_dict(self) -> dict[str, float]:
        """Return plain numbers."""
        return {"total": float(self.total), "parts": self.parts}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore them, or raise a `ValueError` before anything has changed."""
        saved = Saved(state, "RadiusScheduler.loss")
        anything = number(-math.inf, math.inf, signs="<= <=")
        total = saved.number("total", anything)
        self.parts = saved.whole("parts")
        self.total = torch.tensor(total)


class Measurement:
    """One kind of evidence that a rule may ask for.

        observation[k] = (step, loss, agreement[k], layers[k], ...)        each measurement fills some fields

    Shapes: it reads tensors of the parameters' shapes, and gives plain numbers.

    Args:
        optimizer: The optimizer whose steps are measured.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> class Loss(Measurement):
        ...     def observe(self, record):
        ...         return {"loss": float(record.loss)}
        >>> measurement = Loss(Gluon(torch.nn.Linear(2, 2)))
        >>> measurement.remember()
        >>> measurement.observe(StepRecord(torch.tensor(0.5)))
        {'loss': 0.5}
        >>> measurement.forget()
    """

    second_gradient = False  # whether it needs the gradient of one sample at two iterates, every so many steps

    def __init__(self, optimizer: Gluon) -> None:
        self.optimizer = optimizer

    def observe(self, record: StepRecord) -> Fields:
        """Return fields of the `Observation`.

        Args:
            record: The loss, and on some steps the layers at two iterates.

        Raises:
            NotImplementedError: If a subclass does not say.
        """
        raise NotImplementedError

    def remember(self) -> None:
        """Note the step about to be taken."""

    def forget(self) -> None:
        """Let go of all copies: the radii stay from now on."""

    def state_dict(self) -> SavedState:
        """Return plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore them, or raise before anything has changed."""


class GroupReadings(Measurement):
    """Readings of every group, a product of its layers: `Observation.layers` by group name.

        ||X|| = max_i ||X_i||,        ||G||_* = sum_i ||G_i||_*

    Shapes: layers of any shape; readings are numbers, in the units of `lightning_gluon.smoothness.readings`.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> optimizer = Gluon(torch.nn.Linear(2, 2), lr=0.1)
        >>> readings = GroupReadings(optimizer)
        >>> layer = optimizer.layers()[0]
        >>> with torch.no_grad():
        ...     pair = Pair(layer, torch.ones(2, 2), layer.parameter + 1.0)
        >>> observed = readings.observe(StepRecord(torch.zeros(()), [pair]))
        >>> round(observed["layers"][readings.name(layer)]["grad_dual_norm"], 4)
        2.0
    """

    second_gradient = True

    def observe(self, record: StepRecord) -> Fields:
        """Return the readings by name, on the steps that have a sample."""
        first: dict[str, Layer] = {}
        raws: dict[str, list[Raw]] = {}
        for pair, raw in zip(record.pairs, measure(record.pairs), strict=True):
            name = self.name(pair.layer)
            first.setdefault(name, pair.layer)
            raws.setdefault(name, []).append(raw)
        found = {}
        for name, layer in first.items():
            readings = _agreed_readings(raws[name], record.mean)
            readings["lr"] = peak_lr(layer.group)
            readings["radius"] = layer.radius
            found[name] = readings
        return {"layers": found}

    def name(self, layer: Layer) -> str:
        """Return the name under which a layer is counted.

        Args:
            layer: The layer.
        """
        return layer.group["name"]


class LayerReadings(GroupReadings):
    """Readings of every layer: `Observation.layers` by parameter name, but by group name if AdamW steps it.

        L_hat = ||c_new - c_old||_* / ||X^k - X^{k-1}||        and the other readings, in the layer's own norm

    Shapes: layers of any shape; readings are numbers, in the units of `lightning_gluon.smoothness.readings`.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> optimizer = Gluon(torch.nn.Linear(2, 2), lr=0.1)
        >>> LayerReadings(optimizer).name(optimizer.layers()[0])
        'weight'
    """

    def name(self, layer: Layer) -> str:
        """Return the name under which a layer is counted; a group of AdamW has one radius."""
        if stepped_by_adamw(layer.group):
            return layer.group["name"]
        return layer.name


def _agreed_readings(raws: Iterable[Raw], mean: Callable[[Tensor], list[float]]) -> dict[str, float]:
    """Return the readings of several layers as of one, the same on all ranks."""
    raw = combine(raws)
    own = torch.tensor(list(raw.values()), dtype=torch.float64)
    agreed = zip(raw, mean(own), strict=True)
    return derive(dict(agreed))


def measurements_of(rule: object) -> tuple[type[Measurement], ...]:
    """Return the measurements that a rule declares in `needs`: none, one or several subclasses of `Measurement`.

    Args:
        rule: The rule.

    Returns:
        The classes.

    Raises:
        TypeError: If it declares something else.
    """
    needs = getattr(rule, "needs", None) or ()
    kinds = tuple(needs) if isinstance(needs, (list, tuple)) else (needs,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Measurement)):
            raise TypeError(
                f"Expected `needs` of the rule to be measurements of `lightning_gluon.radius`, such as `Agreement` or "
                f"`GroupReadings`, but got {kind!r}."
            )
    return kinds
