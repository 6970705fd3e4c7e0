"""Steps in proportion to what is left to lose: Momo's and NGN's, in the dual norms of all layers.

    full = sum_i lr base_i ||.||_{i,*}        decrease that a step of the initial radii promises, of M (momo) or g (ngn)

    momo   factor = min(1, (l - F* + <M, W>)_+ / full),   l the average of f - <g, W> by the momentum's own recursion
    ngn    factor = 2 alpha f / (full + 2 alpha f)

The factor is on the initial radii of all layers that an LMO steps. What AdamW steps beside them keeps its radii, and
the sums leave it out: the model is that of the other layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lightning_gluon.estimators.carry import Carry
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.norms.table import norm_of
from lightning_gluon.optimizer import Gluon
from lightning_gluon.options import Group
from lightning_gluon.radius.observe import Fields, Measurement, Observation, StepRecord
from lightning_gluon.radius.radii import Factors, stepped_by_adamw
from lightning_gluon.radius.rule import RadiusRule
from lightning_gluon.radius.saved import Saved, SavedState
from lightning_gluon.smoothness.readings import gather_wide, inner
from lightning_gluon.step.layers import Layer
from lightning_gluon.step.plan import factored_of
from lightning_gluon.valid import number


def _stepped_groups(optimizer: Gluon) -> list[Group]:
    """Return the groups that an LMO steps.

    Raises:
        ValueError: If there is none, or a step is not as long as its dual norm promises.
    """
    groups = [group for group in optimizer.param_groups if not stepped_by_adamw(group)]
    if not groups:
        raise ValueError("Expected groups that an LMO steps, but AdamW steps all of them. Take another `method`.")
    for group in groups:
        if not norm_of(group).attains:
            raise ValueError(
                f"Expected the norm of group {group['name']!r} to attain its dual norm, but got {group['norm']!r}: the "
                "decrease that its steps promise is not known. Take another rule."
            )
    return groups


def _stepped_layers(optimizer: Gluon) -> Iterator[Layer]:
    """Yield the layers that an LMO steps and that have a gradient."""
    for layer in optimizer.layers():
        if not stepped_by_adamw(layer.group) and layer.parameter.grad is not None:
            yield layer


class GradientNorms(Measurement):
    """Dual norms of this step's gradients, and the loss: `Observation.layers` by layer name.

        reading = (||g_i||_{i,*}, lr)

    It costs a decomposition per matrix on a CPU, and an LMO on an accelerator.

    Shapes: gradients of any shape; dual norms are numbers, in units of the loss over the layer's norm.

    Args:
        optimizer: The optimizer.

    Raises:
        ValueError: If no group is stepped by an LMO, or the norm of one does not attain its dual norm.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> layer.weight.grad = torch.eye(2)
        >>> optimizer = Gluon([{"params": [layer.weight], "role": "hidden"}], lr=0.5)
        >>> GradientNorms(optimizer).observe(StepRecord(torch.tensor(3.0)))
        {'layers': {'hidden_0': {'dual_norm': 2.0, 'lr': 0.5}}, 'loss': 3.0}
    """

    def __init__(self, optimizer: Gluon) -> None:
        super().__init__(optimizer)
        _stepped_groups(optimizer)

    @torch.no_grad()
    def observe(self, record: StepRecord) -> Fields:
        """Return the dual norms and the loss; waits for the device once."""
        layers = list(_stepped_layers(self.optimizer))
        values = []
        for layer in layers:
            assert layer.parameter.grad is not None
            gradient = gather_wide(layer.parameter.grad)
            values.append(_dual_norm(layer, gradient))
        loss, *norms = _numbers(record, [record.loss, *values])
        return {"layers": _norms_by_name(layers, norms), "loss": loss}


def _dual_norm(layer: Layer, tensor: Tensor) -> Tensor:
    return layer.dual_norm(tensor, exact=tensor.device.type == "cpu")


def _numbers(record: StepRecord, values: list[Tensor]) -> list[float]:
    """Return numbers on the device, agreed between ranks."""
    return record.mean(torch.stack([torch.as_tensor(value).to(values[-1]) for value in values]))


def _norms_by_name(layers: list[Layer], norms: list[float]) -> dict[str, dict[str, float]]:
    found = {}
    for layer, norm in zip(layers, norms, strict=True):
        found[layer.name] = {"dual_norm": norm, "lr": float(layer.group["lr"])}
    return found


class MomentumModel(Measurement):
    """Linear model of the loss that the coming step's momentum stands for, and the momentum's dual norms.

        l <- b l + (1 - b) (f - <g, W>),   model = l + <M, W>,   reading = (||M_i||_{i,*}, lr)

    `l` goes through the momentum's own recursion, whatever kernel that is. It costs a copy of one layer's buffers at a
    time, and a decomposition per matrix on a CPU or an LMO on an accelerator. Gradient clipping comes after it: a
    clipped gradient is not the model's.

    Shapes: gradients of any shape; numbers in units of the loss, dual norms over the layer's norm.

    Args:
        optimizer: The optimizer.

    Attributes:
        averages: Buffers of the recursion of two numbers: `f - <g, W>`, and 1.

    Raises:
        ValueError: If no group is stepped by an LMO, a norm does not attain its dual norm, the momentum is no average
            of gradients at the weights, or groups have different ones.

    References:
        F. Schaipp et al., "MoMo: Momentum Models for Adaptive Learning Rates", arXiv 2305.07583.

    Example:
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> layer.weight.data, layer.weight.grad = torch.eye(2), torch.eye(2)
        >>> optimizer = Gluon([{"params": [layer.weight], "role": "hidden"}], lr=0.5)
        >>> seen = MomentumModel(optimizer).observe(StepRecord(torch.tensor(3.0)))
        >>> seen["model"], seen["layers"]["hidden_0"]["dual_norm"]
        (3.0, 2.0)
    """

    def __init__(self, optimizer: Gluon) -> None:
        super().__init__(optimizer)
        self.averages: dict[str, Tensor] = {}
        groups = _stepped_groups(optimizer)
        kernels = {_kernel_of(group) for group in groups}
        if len(kernels) > 1:
            raise ValueError(f"Expected one momentum for all groups, but got {sorted(kernels)}. Give them the same.")
        if optimizer.reference_point is not None:
            raise ValueError(
                f"Expected gradients at the weights, but this method takes one at the point "
                f"{optimizer.reference_point!r}. Take another `method`."
            )

    @torch.no_grad()
    def observe(self, record: StepRecord) -> Fields:
        """Return the model and the dual norms; waits for the device once."""
        layers = list(_stepped_layers(self.optimizer))
        if not layers:
            return {}
        products: list[Tensor] = []
        for layer in layers:
            assert layer.parameter.grad is not None
            gradient, weight = gather_wide(layer.parameter.grad), gather_wide(layer.parameter)
            momentum = self._direction(layer, gradient)
            products += [inner(gradient, weight), inner(momentum, weight), _dual_norm(layer, momentum)]
        loss, *values = _numbers(record, [record.loss, *products])
        newest = loss - math.fsum(values[::3])
        if not math.isfinite(newest):
            return {}
        average, weight_sum = self._average(newest, layers[0].group)
        model = average + math.fsum(values[1::3])
        return {
            "layers": _norms_by_name(layers, values[2::3]),
            "model": model,
            "model_weight": weight_sum,
            "loss": loss,
        }

    def _direction(self, layer: Layer, gradient: Tensor) -> Tensor:
        """Return the direction of the coming step, and leave the state as it is."""
        group, parameter = layer.group, layer.parameter
        estimator = ESTIMATORS[group["estimator"]]
        kept = dict(self.optimizer.state.get(parameter, {}))
        carry = Carry([kept], [parameter], [factored_of(group, layer.index)], group)
        buffers = {}
        for name in estimator.names(group):
            buffers[name] = [buffer.clone() for buffer in carry.load(name, [gradient])]
        (direction,) = estimator.update(buffers, [gradient], [gradient], estimator.at(group))
        return direction

    def _average(self, newest: float, group: Group) -> tuple[float, float]:
        """Advance the averages of a number and of 1 by the momentum's recursion, and return them."""
        estimator = ESTIMATORS[group["estimator"]]
        new = torch.tensor([newest, 1.0], dtype=torch.float64)
        first = torch.zeros_like(new) if group["start"] == "zero" else new
        buffers = {}
        for name in estimator.names(group):
            buffers[name] = [self.averages.get(name, first).clone()]
        (direction,) = estimator.update(buffers, [new], [new], estimator.at(group))
        average, weight = direction.tolist()
        self.averages = {name: buffer for name, (buffer,) in buffers.items()}
        return average, weight

    def state_dict(self) -> SavedState:
        """Return the averages."""
        return {name: average.tolist() for name, average in self.averages.items()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore them, or raise a `ValueError` before anything has changed."""
        saved = Saved(state, "RadiusScheduler.MomentumModel")
        any_sign = number(-math.inf)
        averages = {}
        for name in saved.state:
            both = saved.numbers(name, any_sign, count=2)
            averages[name] = torch.tensor(both, dtype=torch.float64)
        self.averages = averages


def _kernel_of(group: Group) -> tuple[str, float]:
    """Return what tells the momenta of groups apart.

    Raises:
        ValueError: If a momentum is no average of gradients.
    """
    kernel = ESTIMATORS[group["estimator"]].kernel
    if kernel is None or kernel(group) is None:
        raise ValueError(
            f"Expected the momentum of group {group['name']!r} to be an average of past gradients, but got estimator "
            f"{group['estimator']!r}. Take a `method` with a plain momentum."
        )
    return group["estimator"], group["momentum"]


class Momo(RadiusRule):
    """Steps no longer than to the lower bound of the linear model that the momentum stands for.

        factor = min(1, (l - F* + <M, W>)_+ / sum_i lr base_i ||M_i||_{i,*})

    `l` is the average of `f - <g, W>` with the momentum's own weights. A momentum that starts at zero has less than all
    of the weight at first, and `F*` counts with the same share. The rule depends on `F*`: a bound far below what can be
    reached changes nothing.

    Shapes: plain numbers; the factor is on the initial radii.

    Args:
        lower_bound: `F*`, a loss that no step should try to go below, in units of the loss.

    Raises:
        ValueError: If it is no finite number.

    References:
        F. Schaipp et al., "MoMo: Momentum Models for Adaptive Learning Rates", arXiv 2305.07583.

    Example:
        >>> seen = {"a": {"dual_norm": 4.0, "lr": 0.5}}
        >>> Momo(lower_bound=1.0)(Observation(step=3, base={"a": 1.0}, model=1.5, layers=seen))
        Factors(lmo=0.25, adamw=1.0)
    """

    needs = (MomentumModel,)

    def __init__(self, lower_bound: float = 0.0) -> None:
        finite = number(-math.inf, math.inf, signs="< <")
        self.lower_bound = finite("lower_bound", lower_bound)

    def __call__(self, observation: Observation) -> Factors | None:
        """Return the factor of the coming step."""
        full = _promised(observation)
        if observation.model is None or full == 0:
            return None
        gap = observation.model - observation.model_weight * self.lower_bound
        return Factors(lmo=min(1.0, max(gap, 0.0) / full), adamw=1.0)


class Ngn(RadiusRule):
    """Steps that shorten as the loss falls: the harmonic mean of `lr` and a Polyak step.

        rho = 2 alpha f / sum_i base_i ||g_i||_{i,*},   t = lr rho / (lr + rho),   factor = t / lr

    The loss is that of this step's sample, and its least value has to be zero.

    Shapes: plain numbers; the factor is on the initial radii.

    Args:
        alpha: Factor on the Polyak step.

    Raises:
        ValueError: If `alpha` is not positive.

    References:
        A. Orvieto and L. Xiao, "An Adaptive Stochastic Gradient Method with Non-negative Gauss-Newton Stepsizes", arXiv
        2407.04358. The form over LMOs and .07 are those of NGN-Scion.

    Example:
        >>> seen = {"a": {"dual_norm": 4.0, "lr": 0.5}}
        >>> Ngn(alpha=0.25)(Observation(step=0, base={"a": 1.0}, loss=4.0, layers=seen))
        Factors(lmo=0.5, adamw=1.0)
    """

    needs = (GradientNorms,)

    def __init__(self, alpha: float = 0.07) -> None:
        positive = number(signs="< <")
        self.alpha = positive("alpha", alpha)

    def __call__(self, observation: Observation) -> Factors | None:
        """Return the factor of the coming step."""
        full, loss = _promised(observation), observation.loss
        if loss is None or not math.isfinite(loss) or full == 0:
            return None
        reach = 2 * self.alpha * max(loss, 0.0)
        return Factors(lmo=reach / (full + reach), adamw=1.0)


def _promised(observation: Observation) -> float:
    """Return the decrease that a step of the initial radii promises."""
    base = observation.base
    return math.fsum(base[name] * own["lr"] * own["dual_norm"] for name, own in observation.layers.items())
