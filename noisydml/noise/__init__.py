"""Label noise: wrong labels made on purpose, to measure what withstands them."""

from noisydml.noise.class_frequency import class_frequency
from noisydml.noise.hierarchy import ClassHierarchy
from noisydml.noise.noisy_labels import NoisyLabels
from noisydml.noise.pair_flip import pair_flip
from noisydml.noise.semantic import semantic
from noisydml.noise.small_cluster import small_cluster
from noisydml.noise.uniform import uniform
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
