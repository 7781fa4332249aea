"""Metric-learning losses that withstand wrong labels: wrap the loss, change nothing else."""

from noisydml import distributed, functional
from noisydml.distributed import GatheredLoss
from noisydml.per_sample import per_sample_loss
from noisydml.regularizers import LanguageGuidance, Regularizer
from noisydml.version import __version__
from noisydml.wrappers.base import Decision, LossWrapper
from noisydml.wrappers.confidence import ConfidenceWeightedLoss
from noisydml.wrappers.ground_truth import GroundTruthFilter
from noisydml.wrappers.regularized import RegularizedLoss
from noisydml.wrappers.super_loss import SuperLoss

__all__ = [
    "ConfidenceWeightedLoss",
    "Decision",
    "GatheredLoss",
    "GroundTruthFilter",
    "LanguageGuidance",
    "LossWrapper",
    "RegularizedLoss",
    "Regularizer",
    "SuperLoss",
    "__version__",
    "distributed",
    "functional",
    "per_sample_loss",
]
