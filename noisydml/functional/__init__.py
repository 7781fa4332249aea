"""The papers' mathematics as pure tensor functions: no state, no pytorch-metric-learning."""

from noisydml.functional.class_evidence import leave_one_out_similarity
from noisydml.functional.confidence import confidence, running_mean
from noisydml.functional.interactions import selected_interactions
from noisydml.functional.lambertw import lambertw
from noisydml.functional.language_guidance import language_guidance
from noisydml.functional.mixture import gaussian_mixture, gaussian_mixture_threshold
from noisydml.functional.neighbors import neighbor_label_score, neighbor_weights
from noisydml.functional.otsu import otsu_threshold
from noisydml.functional.prism import (
    batch_positive,
    class_similarity,
    class_similarity_pairs,
    clean_probability,
    clean_probability_pairs,
    low_rank_counts,
    own_similarity,
    softmax_probability,
    top_r_threshold,
)
from noisydml.functional.proxy_nca import proxy_nca
from noisydml.functional.small_loss import forget_rate, small_loss_threshold
from noisydml.functional.titan import (
    class_gaussians,
    clustering_loss,
    density_weights,
    draw_mixture,
    floor_variances,
    gaussian_log_density,
    mix,
    mix_with_prototypes,
    refine_labels,
    retrieval_number,
)
from noisydml.functional.whitening import principal_components, within_class_whitening

__all__ = [
    "batch_positive",
    "class_gaussians",
    "class_similarity",
    "class_similarity_pairs",
    "clean_probability",
    "clean_probability_pairs",
    "clustering_loss",
    "confidence",
    "density_weights",
    "draw_mixture",
    "floor_variances",
    "forget_rate",
    "gaussian_log_density",
    "gaussian_mixture",
    "gaussian_mixture_threshold",
    "lambertw",
    "language_guidance",
    "leave_one_out_similarity",
    "low_rank_counts",
    "mix",
    "mix_with_prototypes",
    "neighbor_label_score",
    "neighbor_weights",
    "otsu_threshold",
    "own_similarity",
    "principal_components",
    "proxy_nca",
    "refine_labels",
    "retrieval_number",
    "running_mean",
    "selected_interactions",
    "small_loss_threshold",
    "softmax_probability",
    "top_r_threshold",
    "within_class_whitening",
]
