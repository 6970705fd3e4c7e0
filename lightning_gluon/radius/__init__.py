"""Length of a step: schedules of `lr`, rules that set `radius` during training, and the radii of the groups."""

from __future__ import annotations

from lightning_gluon.radius.agreement import Agreement
from lightning_gluon.radius.calibrate import Calibrate
from lightning_gluon.radius.observe import GroupReadings, LayerReadings, Measurement, Observation
from lightning_gluon.radius.polyak import GradientNorms, MomentumModel, Momo, Ngn
from lightning_gluon.radius.radii import Factors
from lightning_gluon.radius.relative import UpdateFloor, WeightSizes
from lightning_gluon.radius.rule import RadiusRule
from lightning_gluon.radius.rules import RADIUS_RULES, Smoothness, register_radius_rule
from lightning_gluon.radius.schedules import SCHEDULES, RadiusSchedule, Schedule

__all__ = [
    "RADIUS_RULES",
    "SCHEDULES",
    "Agreement",
    "Calibrate",
    "Factors",
    "GradientNorms",
    "GroupReadings",
    "LayerReadings",
    "Measurement",
    "MomentumModel",
    "Momo",
    "Ngn",
    "Observation",
    "RadiusRule",
    "RadiusSchedule",
    "Schedule",
    "Smoothness",
    "UpdateFloor",
    "WeightSizes",
    "register_radius_rule",
]
