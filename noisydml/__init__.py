"""Metric-learning losses that withstand wrong labels, by wrapping the loss that is there."""

from noisydml import distributed, functional, noise
from noisydml.audit import plot
from noisydml.audit.corrections import apply_corrections
from noisydml.audit.find import find_label_issues
from noisydml.audit.issues import LabelIssues
from noisydml.audit.training import LabelAudit
from noisydml.wrappers.base import LossWrapper
from noisydml.wrappers.confidence import ConfidenceWeightedLoss
from noisydml.wrappers.decision import Decision
from noisydml.wrappers.filter import Filter
from noisydml.wrappers.gathered import GatheredLoss
from noisydml.wrappers.ground_truth import GroundTruthFilter
from noisydml.wrappers.ids import with_ids
from noisydml.wrappers.interactions import SelectedInteractions
from noisydml.wrappers.judged import JudgeFilter
from noisydml.wrappers.knn import KNNDenoiser
from noisydml.wrappers.language_guidance import LanguageGuidance
from noisydml.wrappers.per_sample import per_sample_loss
from noisydml.wrappers.prism import PRISMFilter
from noisydml.wrappers.regularized import RegularizedLoss, Regularizer
from noisydml.wrappers.relabeler import MemoryRelabeler
from noisydml.wrappers.report import decision_stats, decision_summary
from noisydml.wrappers.robust import robust
from noisydml.wrappers.small_loss import SmallLossFilter
from noisydml.wrappers.super_loss import SuperLoss
from noisydml.wrappers.titan import PrototypicalMixer

__version__ = "0.1.0"  # the one place that says it; the build backend reads it

__all__ = [
    "ConfidenceWeightedLoss",
    "Decision",
    "Filter",
    "GatheredLoss",
    "GroundTruthFilter",
    "JudgeFilter",
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
    "apply_corrections",
    "decision_stats",
    "decision_summary",
    "distributed",
    "find_label_issues",
    "functional",
    "noise",
    "per_sample_loss",
    "plot",
    "robust",
    "with_ids",
]
