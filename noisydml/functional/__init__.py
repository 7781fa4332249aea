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
from noisydml.functional.gaussian_mixture import gaussian_mixture, gaussian_mixture_threshold
from noisydml.functional.interactions import selected_interactions
from noisydml.functional.lambertw import lambertw
from noisydml.functional.language_guidance import language_guidance
from noisydml.functional.low_ranks import low_rank_counts
from noisydml.functional.mixing import draw_mixture, mix, mix_with_prototypes
from noisydml.functional.neighbors import neighbor_label_score, neighbor_weights
from noisydml.functional.otsu import otsu_threshold
from noisydml.functional.prototypes import (
    class_gaussians,
    clustering_loss,
    density_weights,
    floor_variances,
    gaussian_log_density,
)
from noisydml.functional.proxy_nca import proxy_nca
from noisydml.functional.refinement import refine_labels, retrieval_number
from noisydml.functional.running_mean import running_mean
from noisydml.functional.small_loss import forget_rate, small_loss_threshold
from noisydml.functional.top_r import top_r_threshold

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
    "low_rank_counts",
    "mix",
    "mix_with_prototypes",
    "neighbor_label_score",
    "neighbor_weights",
    "otsu_threshold",
    "own_similarity",
    "proxy_nca",
    "refine_labels",
    "retrieval_number",
    "running_mean",
    "selected_interactions",
    "small_loss_threshold",
    "softmax_probability",
    "top_r_threshold",
]
