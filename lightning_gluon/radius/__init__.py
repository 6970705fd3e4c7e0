"""How long a step is: schedules of `lr`, rules that set `radius` while training, and the radii of the groups."""

from __future__ import annotations

from lightning_gluon.radius.calibrate import Calibrate, Observation
from lightning_gluon.radius.rules import RULES
from lightning_gluon.radius.schedules import SCHEDULES, RadiusSchedule, Schedule

__all__ = ["RULES", "SCHEDULES", "Calibrate", "Observation", "RadiusSchedule", "Schedule"]
