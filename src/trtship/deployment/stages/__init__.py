"""The stages of a deploy: each makes files in a folder from what came before, and is remembered by all its inputs."""

from trtship.deployment.stages.base import GRAPH, PLAN, REPORT, NotRemembered, StageResult, Stages

__all__ = ["GRAPH", "PLAN", "REPORT", "NotRemembered", "StageResult", "Stages"]
