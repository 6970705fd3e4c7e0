"""Update-to-weight floor: steps that are at least a share of the weights they move."""

from __future__ import annotations

import torch

from lightning_gluon.radius.observe import Fields, Measurement, Observation, StepRecord
from lightning_gluon.radius.radii import stepped_by_adamw
from lightning_gluon.radius.rule import RadiusRule
from lightning_gluon.roles import ROLES
from lightning_gluon.smoothness.readings import gather_wide
from lightning_gluon.step.layers import Layer
from lightning_gluon.valid import number


class WeightSizes(Measurement):
    """Size of every matrix that an LMO steps, in units of its directions: `Observation.layers` by layer name.

        size = ||W||_F / ||D||_F,        D of full rank

    Shapes: matrices of any shape; sizes are numbers, in units of the direction.

    References:
        The update-to-weight floor of `modded-nanogpt`, track 3.

    Example:
        >>> from lightning_gluon import Gluon
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> torch.nn.init.constant_(layer.weight.data, 3.0).norm().item()
        6.0
        >>> optimizer = Gluon([{"params": [layer.weight], "role": "hidden"}], lr=0.1)
        >>> found = WeightSizes(optimizer).observe(StepRecord(torch.zeros(())))["layers"]
        >>> round(found["hidden_0"]["size"], 4)
        4.2426
    """

    @torch.no_grad()
    def observe(self, record: StepRecord) -> Fields:
        """Return the sizes; waits for the device once."""
        layers = [layer for layer in self.optimizer.layers() if _is_stepped(layer)]
        if not layers:
            return {}
        sizes = [gather_wide(layer.parameter).norm() / layer.direction_size() for layer in layers]
        numbers = record.mean(torch.stack([size.to(sizes[0]) for size in sizes]))
        return {"layers": {layer.name: {"size": size} for layer, size in zip(layers, numbers, strict=True)}}


def _is_stepped(layer: Layer) -> bool:
    matrices = ROLES[layer.role].matrices and layer.parameter.numel() > 0
    return matrices and not stepped_by_adamw(layer.group)


class UpdateFloor(RadiusRule):
    """Steps of at least a share of the weights: the radius relative to the size of a matrix, where that is longer.

        radius = max(base, floor ||W||_F / ||D||_F)        so   ||step||_F >= lr floor ||W||_F

    It is for every matrix that an LMO steps. The size is that of the whole parameter, and `D` is a direction of full
    rank. The record runs take it without weight decay.

    Shapes: plain numbers; radii in units of the layer's norm.

    Args:
        floor: Least length of a step at `lr` 1, relative to the weights.

    Raises:
        ValueError: If `floor` is not positive.

    References:
        The update-to-weight floor of `modded-nanogpt`, track 3: .35, later .3825.

    Example:
        >>> rule = UpdateFloor(0.5)
        >>> seen = {"large": {"size": 4.0}, "small": {"size": 1.0}}
        >>> rule(Observation(step=0, base={"large": 1.0, "small": 1.0}, layers=seen))
        {'large': 2.0, 'small': 1.0}
    """

    needs = (WeightSizes,)

    def __init__(self, floor: float = 0.35) -> None:
        positive = number(signs="< <")
        self.floor = positive("floor", floor)

    def __call__(self, observation: Observation) -> dict[str, float] | None:
        """Return the radius of every matrix."""
        radii = {}
        for name, reading in observation.layers.items():
            least = self.floor * reading["size"]
            radii[name] = max(observation.base[name], least)
        return radii or None
