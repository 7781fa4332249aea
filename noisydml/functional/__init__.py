"""The papers' mathematics as pure tensor functions: no state, no pytorch-metric-learning."""

from noisydml.functional.clean_probability import (
    batch_positive,
    class_similarity,
    class_similarity_pairs,
    clean_probability,
    clean_probability_pairs,
    own_similarity,
    softmax_probability,
)
from noisydml.functional.confidence import confidence
from noisydml.functional.lambertw import lambertw
from noisydml.functional.neighbors import NeighborVote, neighbor_label_score, neighbor_weights
from noisydml.functional.otsu import otsu_threshold
from noisydml.functional.proxy_nca import proxy_nca
from noisydml.functional.running_mean import running_mean
from noisydml.functional.top_r import low_rank_counts, top_r_threshold

__all__ = [
    "NeighborVote",
    "batch_positive",
    "class_similarity",
    "class_similarity_pairs",
    "clean_probability",
    "clean_probability_pairs",
    "confidence",
    "lambertw",
    "low_rank_counts",
    "neighbor_label_score",
    "neighbor_weights",
    "otsu_threshold",
    "own_similarity",
    "proxy_nca",
    "running_mean",
    "softmax_probability",
    "top_r_threshold",
]
