"""The main job: a source becomes a verified bundle."""

from trtship.deployment.job import DeployResult, deploy, run_deploy
from trtship.deployment.options import DeployOptions

__all__ = ["DeployOptions", "DeployResult", "deploy", "run_deploy"]
