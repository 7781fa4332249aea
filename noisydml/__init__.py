"""Metric-learning losses that withstand wrong labels: wrap the loss, change nothing else."""

from noisydml import distributed, functional, noise
from noisydml.audit import LabelIssues, find_label_issues
from noisydml.composition import robust
from noisydml.distributed import GatheredLoss
from noisydml.label_audit import LabelAudit
from noisydml.per_sample import per_sample_loss
from noisydml.regularizers import LanguageGuidance, Regularizer
from noisydml.report import decision_stats, decision_summary
from noisydml.version import __version__
from noisydml.wrappers.base import Decision, LossWrapper
from noisydml.wrappers.confidence import ConfidenceWeightedLoss
from noisydml.wrappers.ground_truth import GroundTruthFilter
from noisydml.wrappers.interactions import SelectedInteractions
from noisydml.wrappers.knn import KNNDenoiser
from noisydml.wrappers.prism import PRISMFilter
from noisydml.wrappers.regularized import RegularizedLoss
from noisydml.wrappers.relabeler import MemoryRelabeler
from noisydml.wrappers.small_loss import SmallLossFilter
from noisydml.wrappers.super_loss import SuperLoss
from noisydml.wrappers.titan import PrototypicalMixer

__all__ = [
    "ConfidenceWeightedLoss",
    "Decision",
    "GatheredLoss",
    "GroundTruthFilter",
    "KNNDenoiser",
    "LabelAudit",
    "LabelIssues",
    "LanguageGuidance",
    "LossWrapper",
    "MemoryRelabeler",
    "PRISMFilter",
    "PrototypicalMixer",
    "RegularizedLoss",
    "Regularizer",
    "SelectedInteractions",
    "SmallLossFilter",
    "SuperLoss",
    "__version__",
    "decision_stats",
    "decision_summary",
    "distributed",
    "find_label_issues",
    "functional",
    "noise",
    "per_sample_loss",
    "robust",
]
