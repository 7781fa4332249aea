"""Label noise: wrong labels made on purpose, to measure what withstands them."""

from noisydml.noise.hierarchy import ClassHierarchy
from noisydml.noise.models import class_frequency, pair_flip, uniform
from noisydml.noise.noisy_labels import NoisyLabels
from noisydml.noise.semantic import semantic
from noisydml.noise.small_cluster import small_cluster
from noisydml.noise.wordnet import WordNetMatches, match_wordnet

__all__ = [
    "ClassHierarchy",
    "NoisyLabels",
    "WordNetMatches",
    "class_frequency",
    "match_wordnet",
    "pair_flip",
    "semantic",
    "small_cluster",
    "uniform",
]
