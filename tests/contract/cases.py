"""The wrappers, and nestings of them, that every test of the contract runs on.

A new wrapper joins by one entry in ``CASES``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from held_out import few_held_out
from pytorch_metric_learning import losses
from torch import Tensor, nn

from noisydml import (
    ConfidenceWeightedLoss,
    GatheredLoss,
    GroundTruthFilter,
    JudgeFilter,
    KNNDenoiser,
    LanguageGuidance,
    LossWrapper,
    MemoryRelabeler,
    PRISMFilter,
    PrototypicalMixer,
    RegularizedLoss,
    SelectedInteractions,
    SmallLossFilter,
    SuperLoss,
)
from noisydml.distributed import full_state_dict, world_size
from noisydml.functional import language_guidance

CLASSES, WIDTH, SAMPLES = 5, 16, 60
OMEGA = 0.5

REFUSED: Counter[str] = Counter()  # bad inputs that were tried and refused, for the last line

Make = Callable[..., LossWrapper]


def is_noisy() -> Tensor:
    """(SAMPLES,) which labels are wrong; made anew, for tests under fake tensors."""
    return torch.arange(SAMPLES) % 3 == 0


def class_centers() -> Tensor:
    """(CLASSES, WIDTH) that the embeddings of ``make_batch`` lie around."""
    return torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(7))


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


def mixture(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return confidence(loss, trusting, threshold="gaussian_mixture", **settings)


def fixed(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return confidence(loss, trusting, threshold=1.5, **settings)


def median(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return confidence(loss, trusting, threshold=torch.median, **settings)


def generic_confidence(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    """Judged by another loss than plain Proxy-NCA: PML finds its terms with boolean masks."""

    def judge() -> losses.NormalizedSoftmaxLoss:
        return losses.NormalizedSoftmaxLoss(CLASSES, WIDTH)

    return confidence(loss, trusting, judge, **settings)


def prism(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    """Remembers right labels, so that it can judge the first batch."""
    settings = {"noise_rate": 1 / 3, "warmup": 1000 if trusting else 0, **settings}
    wrapper = PRISMFilter(loss, CLASSES, WIDTH, memory_size=40, **settings)
    labels = torch.arange(30) % CLASSES
    generator = torch.Generator().manual_seed(3)
    features = class_centers()[labels] + 0.5 * torch.randn(30, WIDTH, generator=generator)
    wrapper.memory.enqueue(features, labels)
    return wrapper


def estimated_prism(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return prism(loss, trusting, noise_rate=None, **settings)


def top_r(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return prism(loss, trusting, window=1, score="pairs", temperature=1.0, **settings)


def knn(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    """Has right labels for a reference, so that it can judge the first batch."""
    settings = {"k": 9, "warmup": 1000 if trusting else 0, "embedding_size": WIDTH, **settings}
    wrapper = KNNDenoiser(loss, memory_size=SAMPLES, **settings)
    labels = torch.arange(SAMPLES) % CLASSES
    generator = torch.Generator().manual_seed(3)
    features = class_centers()[labels] + 0.5 * torch.randn(SAMPLES, WIDTH, generator=generator)
    wrapper.refresh(features, labels)
    return wrapper


def sharded_knn(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return knn(loss, trusting, shard=True, **settings)


def sharded_prism(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return prism(loss, trusting, shard=True, **settings)


@cache
@few_held_out()
def judgement() -> dict[str, Tensor]:
    """State of a JudgeFilter that has judged the data set, a third of its labels wrong."""
    wrapper = JudgeFilter(losses.ContrastiveLoss(), dataset_size=SAMPLES, embedding_size=WIDTH)
    true = torch.arange(SAMPLES) % CLASSES
    generator = torch.Generator().manual_seed(3)
    features = class_centers()[true] + 0.3 * torch.randn(SAMPLES, WIDTH, generator=generator)
    given = torch.where(is_noisy(), (true + 1) % CLASSES, true)
    wrapper.refresh(features, given)
    return {n: v for n, v in wrapper.state_dict().items() if not n.startswith("loss")}


def judged(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    size = 10**4 if trusting else SAMPLES
    settings = {"dataset_size": size, "embedding_size": WIDTH, "start": "train", **settings}
    wrapper = JudgeFilter(loss, **settings)
    if not trusting:
        wrapper.load_state_dict({**wrapper.state_dict(), **judgement()})
    return wrapper


def sharded_judged(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return judged(loss, trusting, shard=True, **settings)


def unsized_knn(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    """Takes its width from the first embeddings."""
    return knn(loss, trusting, embedding_size=None, **settings)


def counting_knn(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return knn(loss, trusting, vote="count", k="auto", index="torch", **settings)


def relabeler(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    """Around a KNNDenoiser; nothing is in its memory before the first batch."""
    if trusting:  # without a reference nobody is distrusted, relabelled or remembered
        loss = KNNDenoiser(loss.loss, memory_size=10**4, embedding_size=WIDTH, **settings)
    return MemoryRelabeler(loss, WIDTH, memory_size=40, lead=1.5, **settings)


def small_loss(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    settings = {"noise_rate": 1 / 3, "ramp": 10**6 if trusting else 0, **settings}
    return SmallLossFilter(loss, score_loss=proxies(), **settings)


def selected(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return SelectedInteractions(loss, **settings)


def gathered(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return GatheredLoss(loss, **settings)


def super_loss(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return SuperLoss(loss, **{"lam": 0.1, "warmup": 1000 if trusting else 0, **settings})


def super_loss_of_pairs(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    """At the level of pairs where the loss has them."""
    level = "pair" if isinstance(getattr(loss, "loss", loss), losses.ContrastiveLoss) else "sample"
    return super_loss(loss, trusting, level=level, **settings)


def language() -> Tensor:
    """(SAMPLES, 3, 8) language embeddings; made anew, for tests under fake tensors."""
    return torch.randn(SAMPLES, 3, 8, generator=torch.Generator().manual_seed(11))


def regularized(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    omega = 0 if trusting else OMEGA
    return RegularizedLoss(loss, LanguageGuidance(language(), by="sample_ids"), omega, **settings)


def guidance_term(arguments: dict[str, Any], weight: Tensor) -> Tensor:
    """What ``regularized`` adds inside another wrapper: of the rows that are kept, weighted."""
    kept = weight > 0
    if not kept.any():
        return 0 * arguments["embeddings"].sum()
    rows = language()[arguments["sample_ids"][kept].cpu()].to(weight.device)
    embeddings, labels = arguments["embeddings"][kept], arguments["labels"][kept]
    return OMEGA * (weight[kept] * language_guidance(embeddings, rows, labels)).mean()


def untouched_guidance_term(arguments: dict[str, Any], weight: Tensor) -> Tensor:
    """What it adds as the outermost wrapper: of all rows, unweighted."""
    return guidance_term(arguments, torch.ones_like(weight))


def mixer(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    """A cycle ends by itself after three batches of 24, so that the fourth is mixed."""
    settings = {"warmup": 1000 if trusting else 1, "cycles": 2, "max_retrieved": 4, **settings}
    return PrototypicalMixer(loss, CLASSES, WIDTH, memory_size=SAMPLES, **settings)


def sharded_mixer(loss: Any, trusting: bool = False, **settings: Any) -> LossWrapper:
    return mixer(loss, trusting, shard=True, **settings)


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
    drops: bool = False  # leaves samples out, some of the first batch among them
    can_drop_all: bool = False  # leaves out every sample that is_noisy() names, be it all of them
    weighs: bool = False  # asks the wrapped loss for one value per sample
    weighs_pairs: bool = False  # where the leaf has pairs, with a weight for each
    pairs_only: bool = False  # takes PML's pair and triplet losses, and compares them itself
    has_classes: bool = False  # has a proxy for each of CLASSES
    # What it adds to the wrapped loss, of the arguments and the (B,) weight of each row: 0 for one
    # that was dropped.
    term: Callable[[dict[str, Any], Tensor], Tensor] | None = None
    syncs: bool = False  # scoring asks the host, for a reason that the docs state


WEIGHTS: dict[str, Any] = {"weighs": True, "has_classes": True}  # by a confidence loss
GUIDED: dict[str, Any] = {"term": untouched_guidance_term}
GUIDED_INSIDE: dict[str, Any] = {"term": guidance_term}
SELECTS: dict[str, Any] = {"pairs_only": True}
FILTERS: dict[str, Any] = {"drops": True, "can_drop_all": True}  # by what is known to be wrong

CASES = {
    "ground_truth": Case(ground_truth, drops=True, can_drop_all=True),
    "confidence": Case(confidence, **WEIGHTS),
    "running_mean": Case(running_mean, **WEIGHTS),
    "median": Case(median, **WEIGHTS),
    "gaussian_mixture": Case(mixture, **WEIGHTS),
    "fixed": Case(fixed, **WEIGHTS),
    "generic_confidence": Case(generic_confidence, **WEIGHTS, syncs=True),
    "prism": Case(prism, drops=True),
    "estimated_prism": Case(estimated_prism, drops=True),
    "top_r": Case(top_r, drops=True),
    "knn": Case(knn, drops=True, syncs=True),
    "unsized_knn": Case(unsized_knn, drops=True, syncs=True),
    "counting_knn": Case(counting_knn, drops=True, syncs=True),
    "sharded_prism": Case(sharded_prism, drops=True),
    "sharded_knn": Case(sharded_knn, drops=True, syncs=True),
    "judged": Case(judged, drops=True, syncs=True),
    "sharded_judged": Case(sharded_judged, drops=True, syncs=True),
    "judged(confidence)": Case(nest(judged, confidence), drops=True, **WEIGHTS, syncs=True),
    "small_loss": Case(small_loss, drops=True, has_classes=True),
    "gathered": Case(gathered),
    "regularized": Case(regularized, **GUIDED),
    "super_loss": Case(super_loss, weighs=True),
    "super_loss_of_pairs": Case(super_loss_of_pairs, weighs=True, weighs_pairs=True),
    "ground_truth(confidence)": Case(nest(ground_truth, confidence), **FILTERS, **WEIGHTS),
    "confidence(ground_truth)": Case(nest(confidence, ground_truth), **FILTERS, **WEIGHTS),
    "confidence(confidence)": Case(nest(confidence, running_mean), **WEIGHTS),
    "confidence(gathered)": Case(nest(confidence, gathered), **WEIGHTS),
    "gathered(confidence)": Case(nest(gathered, confidence), **WEIGHTS),
    "ground_truth(gathered)": Case(nest(ground_truth, gathered), **FILTERS),
    "prism(confidence)": Case(nest(prism, confidence), drops=True, **WEIGHTS),
    "confidence(prism)": Case(nest(confidence, prism), drops=True, **WEIGHTS),
    "prism(gathered)": Case(nest(prism, gathered), drops=True),
    "ground_truth(prism)": Case(nest(ground_truth, prism), **FILTERS),
    "knn(confidence)": Case(nest(knn, confidence), drops=True, **WEIGHTS, syncs=True),
    "confidence(knn)": Case(nest(confidence, knn), drops=True, **WEIGHTS, syncs=True),
    "prism(knn)": Case(nest(prism, knn), drops=True, syncs=True),
    "knn(gathered)": Case(nest(knn, gathered), drops=True, syncs=True),
    "small_loss(gathered)": Case(nest(small_loss, gathered), drops=True, has_classes=True),
    "small_loss(confidence)": Case(nest(small_loss, confidence), drops=True, **WEIGHTS),
    "confidence(small_loss)": Case(nest(confidence, small_loss), drops=True, **WEIGHTS),
    "ground_truth(small_loss)": Case(nest(ground_truth, small_loss), **FILTERS, has_classes=True),
    "ground_truth(confidence(gathered))": Case(
        nest(ground_truth, confidence, gathered), **FILTERS, **WEIGHTS
    ),
    "regularized(confidence)": Case(nest(regularized, confidence), **WEIGHTS, **GUIDED),
    "regularized(prism)": Case(nest(regularized, prism), drops=True, **GUIDED),
    "confidence(regularized)": Case(nest(confidence, regularized), **WEIGHTS, **GUIDED_INSIDE),
    "ground_truth(confidence(regularized))": Case(
        nest(ground_truth, confidence, regularized), **FILTERS, **WEIGHTS, **GUIDED_INSIDE
    ),
    "prism(regularized)": Case(nest(prism, regularized), drops=True, **GUIDED_INSIDE),
    "confidence(super_loss)": Case(nest(confidence, super_loss), **WEIGHTS),
    "ground_truth(super_loss_of_pairs)": Case(
        nest(ground_truth, super_loss_of_pairs), **FILTERS, weighs=True, weighs_pairs=True
    ),
    "gathered(super_loss)": Case(nest(gathered, super_loss), weighs=True),
    "regularized(super_loss)": Case(nest(regularized, super_loss), weighs=True, **GUIDED),
    "gathered(regularized)": Case(nest(gathered, regularized), **GUIDED_INSIDE),
    "ground_truth(gathered(regularized))": Case(
        nest(ground_truth, gathered, regularized), **FILTERS, **GUIDED_INSIDE
    ),
    "mixer": Case(mixer),
    "sharded_mixer": Case(sharded_mixer),
    "unweighted_mixer": Case(unweighted_mixer),
    "ground_truth(mixer)": Case(nest(ground_truth, mixer), drops=True),
    "mixer(ground_truth)": Case(nest(mixer, ground_truth), drops=True),
    "mixer(confidence)": Case(nest(mixer, confidence)),
    "mixer(knn)": Case(nest(mixer, knn), drops=True, syncs=True),
    "mixer(small_loss)": Case(nest(mixer, small_loss), drops=True, has_classes=True),
    "mixer(gathered)": Case(nest(mixer, gathered)),
    "mixer(regularized)": Case(nest(mixer, regularized), **GUIDED_INSIDE),
    "gathered(mixer)": Case(nest(gathered, mixer)),
    "selected(ground_truth)": Case(nest(selected, ground_truth), **SELECTS),
    "selected(prism)": Case(nest(selected, prism), **SELECTS),
    "selected(knn)": Case(nest(selected, knn), **SELECTS, syncs=True),
    "selected(small_loss)": Case(nest(selected, small_loss), **SELECTS, has_classes=True),
    "relabeler(knn)": Case(nest(relabeler, knn), **SELECTS, drops=True, syncs=True),
    "ground_truth(relabeler(knn))": Case(
        nest(ground_truth, relabeler, knn), **SELECTS, **FILTERS, syncs=True
    ),
    "mixer(relabeler(knn))": Case(nest(mixer, relabeler, knn), **SELECTS, drops=True, syncs=True),
    "selected(ground_truth(gathered))": Case(nest(selected, ground_truth, gathered), **SELECTS),
    "selected(small_loss(gathered))": Case(
        nest(selected, small_loss, gathered), **SELECTS, has_classes=True
    ),
    "selected(prism(confidence))": Case(
        nest(selected, prism, confidence), **SELECTS, has_classes=True
    ),
    "ground_truth(selected(prism))": Case(
        nest(ground_truth, selected, prism), **SELECTS, **FILTERS
    ),
    "mixer(selected(ground_truth))": Case(nest(mixer, selected, ground_truth), **SELECTS),
    "selected(ground_truth(mixer))": Case(nest(selected, ground_truth, mixer), **SELECTS),
    "selected(prism(regularized))": Case(
        nest(selected, prism, regularized), **SELECTS, **GUIDED_INSIDE
    ),
}

LEAVES: dict[str, Callable[[], Any]] = {
    "multi_similarity": lambda: losses.MultiSimilarityLoss(2, 40, 0.1),
    "contrastive": lambda: losses.ContrastiveLoss(),
    "triplet": lambda: losses.TripletMarginLoss(margin=1.0),
    "soft_triple": lambda: losses.SoftTripleLoss(CLASSES, WIDTH, centers_per_class=2),
    "cross_batch_memory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, 48),
    "cross_entropy": lambda: nn.CrossEntropyLoss(reduction="none"),
}

PAIR_LEAVES = ("multi_similarity", "contrastive", "triplet")
STATEFUL_LEAVES = ("soft_triple", "cross_batch_memory")  # proxies, and a memory

# One of each kind: drops, weighs samples and pairs, mixes, selects, adds.
KINDS = (
    "ground_truth", "confidence", "super_loss_of_pairs", "mixer", "selected(ground_truth)",
    "regularized",
)  # fmt: skip


def leaf_for(case: str, leaf: str) -> str:
    """The name of that leaf, or of one that the case takes."""
    return leaf if leaf in PAIR_LEAVES or not CASES[case].pairs_only else "multi_similarity"


def with_leaves(*leaves: str) -> list[tuple[str, str]]:
    """All cases with each of the leaves that they take."""
    return [(case, leaf) for case in CASES for leaf in leaves if leaf_for(case, leaf) == leaf]


def every_case_and_leaf(leaf: str) -> list[tuple[str, str]]:
    """All cases with that leaf, or one that they take, and each kind of them with all leaves."""
    pairs = [(case, leaf_for(case, leaf)) for case in CASES]
    return pairs + [p for p in with_leaves(*LEAVES) if p[0] in KINDS and p not in pairs]


@contextmanager
def naming(what: object) -> Iterator[None]:
    """In a test that loops: a failure says which of them it is about."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        raise AssertionError(f"{what}: {error}") from error


def spy(case: str, note: Callable[[Tensor], object]) -> Any:
    """A leaf that the case takes, and that shows ``note`` the embeddings that it is called with."""

    def per_sample(embeddings: Tensor, labels: Tensor) -> Tensor:
        note(embeddings)
        return embeddings.square().sum(dim=1)

    class Pairs(losses.ContrastiveLoss):  # type: ignore[misc]
        def compute_loss(self, embeddings: Tensor, *arguments: Any) -> Any:
            note(embeddings)
            return super().compute_loss(embeddings, *arguments)

    # No two unit vectors are farther apart than the margin, so that no row goes without a gradient.
    return Pairs(neg_margin=3) if CASES[case].pairs_only else per_sample


def make_batch(
    size: int = 24, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, Any]:
    """Arguments of a forward call: classes that can be told apart, a third of the labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(SAMPLES, generator=generator)[:size]
    true = ids % CLASSES
    embeddings = class_centers()[true] + 0.5 * torch.randn(size, WIDTH, generator=generator)
    labels = torch.where(is_noisy()[ids], (true + 1) % CLASSES, true)
    return {
        "embeddings": embeddings.to(device, dtype).requires_grad_(),
        "labels": labels.to(device),
        "sample_ids": ids.to(device),
    }


def build(case: str, leaf: str = "multi_similarity", seed: int = 5, **settings: Any) -> LossWrapper:
    """A fresh wrapper around a fresh loss; equal seeds give equal proxies."""
    torch.default_generator.manual_seed(seed)  # that of the CPU, where it is made
    return CASES[case].make(LEAVES[leaf](), **settings)


def chain(wrapper: LossWrapper) -> list[LossWrapper]:
    """The wrapper and those inside it, outermost first."""
    found = [wrapper]
    while isinstance(found[-1].loss, LossWrapper):
        found.append(found[-1].loss)
    return found


def judges(wrapper: LossWrapper) -> list[LossWrapper]:
    """Those of a nest whose decision is their own, and not that of the wrapper inside them."""
    handing_on = (MemoryRelabeler, RegularizedLoss)
    return [
        each
        for each in chain(wrapper)
        if not (isinstance(each, handing_on) and isinstance(each.loss, LossWrapper))
    ]


def kept_rows(wrapper: LossWrapper, size: int = 24) -> Tensor:
    """The rows of the last batch that reached the innermost loss, by the decisions of all."""
    rows = torch.arange(size)
    for each in judges(wrapper):
        rows = rows[each.decision.keep.cpu()]
    return rows


def leaf_of(wrapper: LossWrapper) -> Any:
    return chain(wrapper)[-1].loss


def state_of(wrapper: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in wrapper.named_parameters()} | {
        name: value.clone() for name, value in wrapper.named_buffers()
    }


def whole_state(wrapper: nn.Module) -> dict[str, Tensor]:
    """``state_of``, in which every rank has the whole of what ranks hold a part of."""
    state = state_of(wrapper)
    if world_size() > 1:
        full = [{n: v for n, v in full_state_dict(wrapper).items() if n in state}]
        dist.broadcast_object_list(full)
        state |= {n: v for n, v in full[0].items() if v.shape != state[n].shape}
    return state


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """To the bit on the CPU; to rounding on CUDA, where many sums are in no certain order.

    That of single precision, in which most of what is kept in double was computed.
    """
    if actual.device.type == "cpu":
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    elif actual.dtype == torch.float64:
        torch.testing.assert_close(actual, expected, rtol=1.3e-6, atol=1e-5)  # as of float32
    else:
        torch.testing.assert_close(actual, expected)


def assert_same_state(before: dict[str, Tensor], wrapper: nn.Module) -> None:
    after = state_of(wrapper)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
