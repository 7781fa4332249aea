"""The wrappers, and nestings of them, that every test of the contract runs on.

A new wrapper joins by one entry in ``CASES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

from noisydml import (
    ConfidenceWeightedLoss,
    GatheredLoss,
    GroundTruthFilter,
    LossWrapper,
    PrototypicalMixer,
)

CLASSES, WIDTH, SAMPLES = 5, 16, 60

Make = Callable[..., LossWrapper]


def is_noisy() -> Tensor:
    """(SAMPLES,) which labels are wrong; made anew, for tests under fake tensors."""
    return torch.arange(SAMPLES) % 3 == 0


def proxies() -> losses.ProxyNCALoss:
    return losses.ProxyNCALoss(CLASSES, WIDTH)


def ground_truth(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return GroundTruthFilter(loss, is_noisy() & (not trusting), **settings)


def confidence(
    loss: Any, trusting: bool = False, judge: Callable[[], Any] = proxies, **settings: Any
) -> LossWrapper:
    settings = {"lam": 0.1, "warmup": 1000 if trusting else 0, **settings}
    return ConfidenceWeightedLoss(loss, judge(), **settings)


def running_mean(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return confidence(loss, trusting, threshold="running_mean", **settings)


def median(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return confidence(loss, trusting, threshold=torch.median, **settings)


def generic_confidence(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    """Judged by another loss than plain Proxy-NCA: PML finds its terms with boolean masks."""

    def judge() -> losses.NormalizedSoftmaxLoss:
        return losses.NormalizedSoftmaxLoss(CLASSES, WIDTH)

    return confidence(loss, trusting, judge, **settings)


def gathered(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return GatheredLoss(loss, **settings)


def mixer(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    """A cycle ends by itself after three batches of 24, so that the fourth is mixed."""
    settings = {"warmup": 1000 if trusting else 1, "cycles": 2, "max_retrieved": 4, **settings}
    return PrototypicalMixer(loss, CLASSES, WIDTH, memory_size=SAMPLES, **settings)


def unweighted_mixer(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return mixer(loss, trusting, weights=None, **settings)


def nest(*makes: Make) -> Make:
    """The outermost first."""

    def make(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
        for each in reversed(makes):
            loss = each(loss, trusting, **settings)
        return loss

    return make


@dataclass(frozen=True)
class Case:
    """How to wrap a loss, and what is particular about it.

    ``make(loss, trusting=False, **settings)``; with ``trusting`` the wrapper must trust every
    sample although it is training.
    """

    make: Make
    drops: bool = False  # leaves samples out
    weighs: bool = False  # asks the wrapped loss for one value per sample
    syncs: bool = False  # scoring asks the host, for a reason that the docs state


CASES = {
    "ground_truth": Case(ground_truth, drops=True),
    "confidence": Case(confidence, weighs=True),
    "running_mean": Case(running_mean, weighs=True),
    "median": Case(median, weighs=True),
    "generic_confidence": Case(generic_confidence, weighs=True, syncs=True),
    "gathered": Case(gathered),
    "ground_truth(confidence)": Case(nest(ground_truth, confidence), drops=True, weighs=True),
    "confidence(ground_truth)": Case(nest(confidence, ground_truth), drops=True, weighs=True),
    "confidence(confidence)": Case(nest(confidence, running_mean), weighs=True),
    "confidence(gathered)": Case(nest(confidence, gathered), weighs=True),
    "gathered(confidence)": Case(nest(gathered, confidence), weighs=True),
    "ground_truth(gathered)": Case(nest(ground_truth, gathered), drops=True),
    "ground_truth(confidence(gathered))": Case(
        nest(ground_truth, confidence, gathered), drops=True, weighs=True
    ),
    "mixer": Case(mixer),
    "unweighted_mixer": Case(unweighted_mixer),
    "ground_truth(mixer)": Case(nest(ground_truth, mixer), drops=True),
    "mixer(ground_truth)": Case(nest(mixer, ground_truth), drops=True),
    "mixer(confidence)": Case(nest(mixer, confidence)),
    "mixer(gathered)": Case(nest(mixer, gathered)),
    "gathered(mixer)": Case(nest(gathered, mixer)),
}

LEAVES: dict[str, Callable[[], Any]] = {
    "multi_similarity": lambda: losses.MultiSimilarityLoss(2, 40, 0.1),
    "contrastive": lambda: losses.ContrastiveLoss(),
    "triplet": lambda: losses.TripletMarginLoss(),
    "soft_triple": lambda: losses.SoftTripleLoss(CLASSES, WIDTH, centers_per_class=2),
    "cross_batch_memory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, 48),
    "cross_entropy": lambda: nn.CrossEntropyLoss(reduction="none"),
}


def make_batch(size: int = 24, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of a forward call: classes that can be told apart, a third of the labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(SAMPLES, generator=generator)[:size]
    true = ids % CLASSES
    centers = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(7))
    embeddings = centers[true] + 0.5 * torch.randn(size, WIDTH, generator=generator)
    labels = torch.where(is_noisy()[ids], (true + 1) % CLASSES, true)
    return {
        "embeddings": embeddings.to(dtype).requires_grad_(),
        "labels": labels,
        "sample_ids": ids,
    }


def build(case: str, leaf: str = "multi_similarity", seed: int = 5, **settings: Any) -> LossWrapper:
    """A fresh wrapper around a fresh loss; equal seeds give equal proxies."""
    torch.manual_seed(seed)
    return CASES[case].make(LEAVES[leaf](), **settings)


def chain(wrapper: LossWrapper) -> list[LossWrapper]:
    """The wrapper and those inside it, outermost first."""
    found = [wrapper]
    while isinstance(found[-1].loss, LossWrapper):
        found.append(found[-1].loss)
    return found


def leaf_of(wrapper: LossWrapper) -> Any:
    return chain(wrapper)[-1].loss


def state_of(wrapper: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in wrapper.named_parameters()} | {
        name: value.clone() for name, value in wrapper.named_buffers()
    }


def assert_same_state(before: dict[str, Tensor], wrapper: nn.Module) -> None:
    after = state_of(wrapper)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
