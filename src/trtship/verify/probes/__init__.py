"""Checks that a right plan passes whatever its model is, found in this package: one is added by adding its file."""

from trtship.verify.probes.base import Attack, Probe
from trtship.verify.probes.registry import all_probes

__all__ = ["Attack", "Probe", "all_probes"]
