"""Role, norm and matrices of every parameter, by what its module is and does."""

from __future__ import annotations

from lightning_gluon.partition.build import partition
from lightning_gluon.partition.names import route_by_name
from lightning_gluon.partition.result import Partition
from lightning_gluon.partition.route import Route
from lightning_gluon.partition.routing import register_routing

__all__ = ["Partition", "Route", "partition", "register_routing", "route_by_name"]
