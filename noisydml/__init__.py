"""Metric-learning losses that withstand wrong labels: wrap the loss, change nothing else."""

from noisydml import distributed, functional, noise
from noisydml.distributed import GatheredLoss
from noisydml.per_sample import per_sample_loss
from noisydml.version import __version__
from noisydml.wrappers.base import Decision, LossWrapper
from noisydml.wrappers.confidence import ConfidenceWeightedLoss
from noisydml.wrappers.ground_truth import GroundTruthFilter

__all__ = [
    "ConfidenceWeightedLoss",
    "Decision",
    "GatheredLoss",
    "GroundTruthFilter",
    "LossWrapper",
    "__version__",
    "distributed",
    "functional",
    "noise",
    "per_sample_loss",
]
