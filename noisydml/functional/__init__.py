"""The papers' mathematics as pure tensor functions: no state, no pytorch-metric-learning."""

from noisydml.functional.confidence import confidence
from noisydml.functional.gaussian_mixture import gaussian_mixture, gaussian_mixture_threshold
from noisydml.functional.lambertw import lambertw
from noisydml.functional.language_guidance import language_guidance
from noisydml.functional.otsu import otsu_threshold
from noisydml.functional.proxy_nca import proxy_nca
from noisydml.functional.running_mean import running_mean

__all__ = [
    "confidence",
    "gaussian_mixture",
    "gaussian_mixture_threshold",
    "lambertw",
    "language_guidance",
    "otsu_threshold",
    "proxy_nca",
    "running_mean",
]
