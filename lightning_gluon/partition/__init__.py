"""Which parameter is what: role, norm and matrices of every parameter, by what its module is and does."""

from __future__ import annotations

from lightning_gluon.partition.names import route_by_name
from lightning_gluon.partition.partition import partition
from lightning_gluon.partition.result import Partition
from lightning_gluon.partition.route import MATRIX_ROLES, ROLES, Route

__all__ = ["MATRIX_ROLES", "ROLES", "Partition", "Route", "partition", "route_by_name"]
