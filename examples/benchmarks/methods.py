"""The losses and the wrappers that train.py knows by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from image_sets import GivenLabels
from pytorch_metric_learning import losses
from texts import minilm
from torch import Tensor, nn

from noisydml import (
    ConfidenceWeightedLoss,
    GroundTruthFilter,
    JudgeFilter,
    KNNDenoiser,
    LanguageGuidance,
    MemoryRelabeler,
    PRISMFilter,
    PrototypicalMixer,
    RegularizedLoss,
    SelectedInteractions,
    SmallLossFilter,
    SuperLoss,
    language,
    robust,
)
from noisydml.memory.index import FaissIndex
from noisydml.pml.batch import Batch
from noisydml.wrappers.decision import Judgement


@dataclass
class Setting:
    """What a loss or a wrapper is made for."""

    given: GivenLabels
    rate: float
    features: int  # width before the head
    embedding_size: int
    head: nn.Module
    epochs: int
    steps: int  # an epoch
    base: Callable[[Setting], nn.Module]
    names: Sequence[str] = ()  # of the classes, where the file says them

    @property
    def size(self) -> int:
        return len(self.given.labels)

    def loss(self) -> nn.Module:
        return self.base(self)


@dataclass(frozen=True)
class Method:
    """How to make the loss of a run, and what the loop around it does for it."""

    make: Callable[[Setting], Any]
    sample_ids: bool = True
    refresh: bool = False  # features of all samples, in eval mode, after each epoch
    clean: bool = False  # whether it is given the true labels
    # The features of the untrained network that it judges by before the first step, if any.
    start: Literal["embeddings", "features"] | None = None
    trains: bool = True


LOSSES: dict[str, Callable[[Setting], nn.Module]] = {
    "multi-similarity": lambda s: losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5),
    "SoftTriple": lambda s: losses.SoftTripleLoss(s.given.num_classes, s.embedding_size),
    "SupCon": lambda s: losses.SupConLoss(temperature=0.1),
    "SupCon (0.5)": lambda s: losses.SupConLoss(temperature=0.5),
    "contrastive + memory": lambda s: losses.CrossBatchMemory(
        losses.ContrastiveLoss(pos_margin=0, neg_margin=0.5), s.embedding_size, s.size
    ),
    # N2D2's, for MNIST
    "MS": lambda s: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
    "SCAF": lambda s: losses.SubCenterArcFaceLoss(
        num_classes=s.given.num_classes,
        embedding_size=s.embedding_size,
        margin=28.6,
        scale=64,
        sub_centers=3,
    ),
    "ST": lambda s: losses.SoftTripleLoss(
        s.given.num_classes, s.embedding_size, centers_per_class=10, la=20, gamma=0.1, margin=0.01
    ),
}


def prism(s: Setting, **settings: Any) -> PRISMFilter:
    sizes = (s.given.num_classes, s.embedding_size)
    return PRISMFilter(s.loss(), *sizes, memory_size=s.size, **settings)


def knn(s: Setting, **settings: Any) -> KNNDenoiser:
    return KNNDenoiser(s.loss(), memory_size=s.size, **settings)


def proxies(s: Setting) -> nn.Module:
    return losses.ProxyNCALoss(s.given.num_classes, s.embedding_size)


def cells(s: Setting) -> FaissIndex:
    """Searches a 16th of a large data set."""
    return FaissIndex(f"IVF{min(256, 1 + s.size // 40)},Flat", nprobe=16)


def titan(**settings: Any) -> Method:
    def make(s: Setting) -> PrototypicalMixer:
        return PrototypicalMixer(
            s.loss(),
            s.given.num_classes,
            s.features,
            s.head,
            memory_size=s.size,
            **{"cycles": s.epochs - 1, **settings},
        )

    return Method(make)


def relabeler(s: Setting, **settings: Any) -> MemoryRelabeler:
    filter = knn(s, threshold=0.25)
    return MemoryRelabeler(filter, s.embedding_size, memory_size=s.size, **settings)


class JudgeRelabeler(JudgeFilter):
    """Trains on who is dropped, too, as of the class that the judge suggests, if it is certain."""

    certain = 0.9

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        found = judgement.decision
        if found.suggested_labels is None or found.support is None:  # nothing has been judged
            return super().value(batch, judgement)
        other = ~found.keep & found.judged & (found.support > self.certain)
        other &= found.suggested_labels >= 0
        labels = torch.where(other, found.suggested_labels, batch.labels)
        relabelled = replace(batch, labels=labels, indices_tuple=None)
        return self.kept_value(relabelled.select(found.keep | other))


class UnavailableError(RuntimeError):
    """A method that needs what is not installed, or not in the file."""


@cache
def language_table(names: tuple[str, ...]) -> Tensor:
    """(C, E) embeddings of class names by all-MiniLM-L6-v2."""
    if not names:
        raise UnavailableError("the file has no class_names")
    try:
        return language.embed_names(names, minilm())
    except ImportError as error:
        raise UnavailableError(str(error)) from error


def guided(s: Setting) -> RegularizedLoss:
    """ProcSim, with the guidance of the names of the given classes."""
    table = language_table(tuple(name.replace("_", " ") for name in s.names))
    weighted = ConfidenceWeightedLoss(s.loss(), proxies(s), lam=0.1)
    return RegularizedLoss(weighted, LanguageGuidance(table, by="labels"), weight=5.5)


def robust_loss(s: Setting, **settings: Any) -> Any:
    return robust(s.loss(), s.given.num_classes, s.embedding_size, s.size, **settings)


def small_loss(s: Setting) -> SmallLossFilter:
    # Co-teaching's ramp is 10 of 200 epochs; here there are so few of them that it is 2.
    settings = {"noise_rate": s.rate, "ramp": 2 * s.steps}
    return SmallLossFilter(s.loss(), score_loss=proxies(s), **settings)


METHODS: dict[str, Method] = {
    "plain": Method(Setting.loss),
    "untrained": Method(Setting.loss, trains=False),
    "clean labels": Method(Setting.loss, clean=True),
    "GroundTruthFilter": Method(lambda s: GroundTruthFilter(s.loss(), s.given.is_noisy)),
    "PRISMFilter": Method(prism),
    "PRISMFilter (rate given)": Method(lambda s: prism(s, noise_rate=s.rate)),
    "PRISMFilter (rate given, T = 1)": Method(
        lambda s: prism(s, noise_rate=s.rate, temperature=1.0)
    ),
    "PRISMFilter (rate given, no warm-up)": Method(lambda s: prism(s, noise_rate=s.rate, warmup=0)),
    "KNNDenoiser": Method(knn),
    "KNNDenoiser (counts)": Method(lambda s: knn(s, vote="count")),
    "KNNDenoiser (counts, IVF)": Method(lambda s: knn(s, vote="count", index=cells(s))),
    "KNNDenoiser (IVF)": Method(lambda s: knn(s, index=cells(s))),
    "KNNDenoiser (judged start)": Method(knn, start="embeddings"),
    "KNNDenoiser (refreshed)": Method(knn, refresh=True),
    "KNNDenoiser (0.25)": Method(lambda s: knn(s, threshold=0.25)),
    "KNNDenoiser (0.25, refreshed)": Method(lambda s: knn(s, threshold=0.25), refresh=True),
    "KNNDenoiser (0.25), no ids": Method(lambda s: knn(s, threshold=0.25), sample_ids=False),
    "MemoryRelabeler (KNN, 0.25)": Method(relabeler),
    "the same, nobody relabelled": Method(lambda s: relabeler(s, lead=math.inf)),
    "ConfidenceWeightedLoss": Method(
        lambda s: ConfidenceWeightedLoss(s.loss(), proxies(s), lam=0.1)
    ),
    "ConfidenceWeightedLoss and language": Method(guided),
    "SmallLossFilter (rate given)": Method(small_loss),
    "SuperLoss": Method(lambda s: SuperLoss(s.loss(), lam=0.25)),
    "SelectedInteractions (PRISM)": Method(lambda s: SelectedInteractions(prism(s))),
    "SelectedInteractions (KNN)": Method(lambda s: SelectedInteractions(knn(s, threshold=0.25))),
    "TITAN": titan(),
    "TITAN without similarity loss": titan(similarity=False),
    "TITAN without clustering": titan(clustering=0),
    "TITAN without mixing": titan(mixing=False),
    "TITAN without refinement": titan(refinement=False),
    "TITAN without weights": titan(weights=None),
    "refinement alone": titan(mixing=False, clustering=0, weights=None),
    "mixing alone": titan(refinement=False, clustering=0, weights=None),
    "clustering alone": titan(refinement=False, mixing=False, weights=None),
    "weights alone": titan(refinement=False, mixing=False, clustering=0),
    "TITAN (weights: density)": titan(weights="density"),
    "TITAN (normalize=False)": titan(normalize=False),
    "robust": Method(robust_loss),
    "robust (judged start)": Method(robust_loss, start="features"),
    "robust (judged start), threshold 0.5": Method(
        lambda s: JudgeFilter(s.loss(), dataset_size=s.size, threshold=0.5), start="features"
    ),
    "robust (judged start), relabelled": Method(
        lambda s: JudgeRelabeler(s.loss(), dataset_size=s.size, threshold=0.5), start="features"
    ),
    "robust (trained start)": Method(lambda s: robust_loss(s, start="train")),
}
