"""What past batches leave behind: features, class centers, prototypes, neighbours."""

from noisydml.memory.features import FeatureMemory
from noisydml.memory.index import FaissIndex, NeighborIndex, Neighbors, TorchIndex
from noisydml.memory.neighbors import Neighborhood
from noisydml.memory.prototypes import Prototypes, RefinedLabels

__all__ = [
    "FaissIndex",
    "FeatureMemory",
    "NeighborIndex",
    "Neighborhood",
    "Neighbors",
    "Prototypes",
    "RefinedLabels",
    "TorchIndex",
]
