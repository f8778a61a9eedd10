"""What this machine has for trtship, what it lacks, and the command that mends it. Needs the base package alone."""

from trtship.doctor.diagnosis import diagnose
from trtship.doctor.records import Ability, Diagnosis, Finding

__all__ = ["Ability", "Diagnosis", "Finding", "diagnose"]
