"""TITAN: prototypical mixing and retrieval-based refinement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noisydml import pml
from noisydml.distributed import gather_batch
from noisydml.functional import density_weights, draw_mixture, mix, retrieval_number
from noisydml.functional.checks import (
    require_choice,
    require_count,
    require_not_negative,
    require_positive,
)
from noisydml.memory.prototypes import Prototypes, RefinedLabels
from noisydml.memory.state import Counters
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import LossWrapper, call_loss, zero_with_graph
from noisydml.wrappers.checks import ValueCheck, in_range, require_width
from noisydml.wrappers.decision import Decision, Judgement
from noisydml.wrappers.head import embed_batch, output_width

Weights = Literal["tempered", "density"]

_LARGEST = 1e15  # of a feature: variances and densities have squares of it, in single precision


@dataclass(frozen=True, eq=False)
class MixingDecision(Decision):
    """A :class:`Decision`, and what the batch was mixed with; None in warm-up.

    Attributes:
        labels: (B,) int64, the labels that the loss was computed with, given or refined.
        draws: (B, D), what each feature was mixed with.
        share: (B,), the share of its own feature in each mixture.
    """

    labels: Tensor | None = None
    draws: Tensor | None = None
    share: Tensor | None = None


class PrototypicalMixer(LossWrapper):
    r"""Mixes features with class prototypes and relabels what prototypes retrieve (TITAN).

    A memory holds the latest feature z of every sample. Cycle by cycle (an epoch, as a rule) each
    class becomes a Gaussian prototype :math:`N(\mu_c, \sigma_c^2)`, and the :math:`K_t` samples
    nearest to :math:`\mu_c` get the label c (Eq. 9-10). In a step each feature is mixed with a
    draw from its nearest prototype, :math:`z_i^+ = \lambda_i z_i + (1 - \lambda_i) z_i'` with
    :math:`\lambda_i \sim Beta(2, 2)`, the head embeds :math:`[z; z^+]`, and the wrapped loss sees
    these 2 B embeddings, weighted by the density :math:`w_i` of each feature (Eq. 8). A loss that
    pulls the features to their class's mean (Eq. 11) is added.

    Args:
        loss: any loss that a wrapper takes; None for the paper's, PML's ``SupConLoss`` at
            temperature 0.5 (Eq. 7). With ``weights`` it has to have per-sample losses.
        num_classes: C; labels lie in ``[0, C)``.
        feature_size: width of the features z, D.
        head: a module from (B, D) features to (B, E) embeddings. None: the features are the
            embeddings, and a mixed one gets the length of the one that it was made from.
        memory_size: number of samples of the data set, N; ``sample_ids`` lie in ``[0, N)``.
        warmup: number of cycles, 1 or more, in which the wrapped loss alone trains.
        cycles: T, after how many cycles beyond warm-up :math:`K_t` has grown to ``max_retrieved``.
        max_retrieved: :math:`K_{max}`.
        clustering: :math:`\eta`, the weight of the clustering loss; 0 leaves it out.
        temperature: of the clustering loss.
        normalize: whether clustering and retrieval compare directions, seen from the mean of the
            class means: cosines instead of dot products and Euclidean distances. False: as printed
            in Eq. 9 and 11, which needs features that are normalised already.
        weights: ``"tempered"``: the density's geometric mean over the dimensions; ``"density"``:
            the density itself, the paper's; None: no weights. Mean 1 in a batch.
        variance_floor: no variance is below this share of what is usual in its dimension.
        alpha: first parameter of the Beta distribution of :math:`\lambda`, above 0.
        beta: second parameter of it, above 0.
        mixing: False leaves out the mixed samples (the paper's Table 4, like the next two).
        refinement: False keeps all labels as given.
        similarity: False leaves out the wrapped loss after warm-up.
        seed: of the random numbers; None takes ``torch.initial_seed()``.
        shard: whether each rank of ``torch.distributed`` holds a part of the memory: sample i, or
            entry i of a ring, is one of rank ``i % R``, of R. Prototypes and labels in use are of
            all samples, on every rank. It has to be initialised before.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        prototypes: the :class:`~noisydml.memory.Prototypes`, with the ``memory``, and the
            ``means``, ``variances`` and ``counts`` of this cycle.

    Forward:
        As every wrapper, with the features z in the place of embeddings; a ``ref_emb`` goes
        through the head, too. ``decision`` is a :class:`MixingDecision`: ``weight`` is w (B,),
        ``score`` the log-density under the given class's prototype less the highest (0 where
        the class is the nearest or has no prototype), ``suggested_labels`` the nearest prototype.
        Without ``sample_ids`` the memory is a ring and no label is refined. A cycle ends by
        itself after N samples, until :meth:`end_epoch` has been called. In eval mode the head
        and the wrapped loss are all there is.

    Raises:
        TypeError: if a size is no integer, a number none, the head no module, or the loss cannot be
            weighted sample by sample as ``weights`` ask for.
        ValueError: if a setting is outside the values above, or the head takes features of another
            width; in a call if features are not as wide as ``feature_size``, labels outside ``[0,
            C)``, or ids outside ``[0, N)`` or given in some batches only.

    Under ``torch.distributed`` memory, prototypes and random numbers are those of one process
    with the concatenated batch. The head has to average its gradients itself: give
    ``DistributedDataParallel(head)``. With ``shard`` a cycle begins where all ranks meet: in the
    first step after the last one is over, or in :meth:`refined_labels` if that is called before.

    References:
        Yang et al., Prototypical Mixing and Retrieval-based Refinement for Label Noise-resistant
        Image Retrieval, ICCV 2023.

    Example:
        >>> import torch
        >>> from noisydml import PrototypicalMixer
        >>> _ = torch.manual_seed(0)
        >>> loss_fn = PrototypicalMixer(
        ...     None, num_classes=2, feature_size=4, head=torch.nn.Linear(4, 3), memory_size=40,
        ...     max_retrieved=10, cycles=1,
        ... )
        >>> labels = torch.arange(40) % 2
        >>> features = torch.randn(40, 4) + 5 * labels.unsqueeze(1)
        >>> labels[:3] = torch.tensor([1, 0, 1])  # wrong
        >>> loss = loss_fn(features, labels, sample_ids=torch.arange(40))  # warm-up
        >>> loss = loss_fn(features, labels, sample_ids=torch.arange(40))
        >>> loss_fn.decision.suggested_labels[:4], loss_fn.decision.draws.shape
        (tensor([0, 1, 0, 1]), torch.Size([40, 4]))
    """

    def __init__(
        self,
        loss: Callable[..., Any] | None,
        num_classes: int,
        feature_size: int,
        head: nn.Module | None = None,
        *,
        memory_size: int,
        warmup: int = 1,
        cycles: int = 10,
        max_retrieved: int = 20,
        clustering: float = 0.8,
        temperature: float = 0.5,
        normalize: bool = True,
        weights: Weights | None = "tempered",
        variance_floor: float = 0.1,
        alpha: float = 2.0,
        beta: float = 2.0,
        mixing: bool = True,
        refinement: bool = True,
        similarity: bool = True,
        seed: int | None = None,
        shard: bool = False,
        validate_args: bool = True,
    ) -> None:
        loss = pml.supervised_contrastive() if loss is None else loss
        super().__init__(loss, validate_args=validate_args)
        if any(isinstance(wrapper, PrototypicalMixer) for wrapper in list(self._chain())[1:]):
            raise TypeError("loss must not be or contain another PrototypicalMixer")
        pml.refuse_sorted(self._innermost, "it cannot take mixed embeddings, or other labels")
        require_choice("weights", weights, ("tempered", "density", None))
        if weights is not None:
            pml.refuse_unweightable(self.loss)
        if head is not None and not isinstance(head, nn.Module):
            raise TypeError(f"head must be a torch.nn.Module or None, got {type(head).__name__}")
        first = head[0] if isinstance(head, nn.Sequential) and len(head) > 0 else head
        if isinstance(first, nn.Linear) and first.in_features not in (feature_size, 0):  # 0: lazy
            raise ValueError(
                f"head must take features of width feature_size, {feature_size}, "
                f"got one for {first.in_features}"
            )
        require_count("warmup", warmup)
        require_count("cycles", cycles)
        require_count("max_retrieved", max_retrieved, least=0)
        require_not_negative("clustering", clustering)
        require_positive("temperature", temperature)
        require_positive("alpha", alpha)
        require_positive("beta", beta)
        if seed is None:
            seed = torch.initial_seed()
        require_count("seed", seed, least=0)
        self.head = head
        self.prototypes = Prototypes(
            num_classes, feature_size, memory_size, variance_floor,
            by_direction=bool(normalize), shard=shard,
        )  # fmt: skip
        self.num_classes, self.feature_size = num_classes, feature_size
        self.warmup, self.cycles, self.max_retrieved = warmup, cycles, max_retrieved
        self.clustering, self.temperature = float(clustering), float(temperature)
        self.weights: Weights | None = weights
        self.alpha, self.beta = float(alpha), float(beta)
        self.mixing, self.refinement, self.similarity = mixing, refinement, similarity
        self._width: int | None = None  # of the head, once it has been asked
        # Steps, samples in this cycle, cycles begun, was end_epoch called (1, and 1 more for
        # each cycle that has yet to begin), had the last batch ids.
        self.counters = Counters(
            seed=int(seed) % 2**63, step=0, seen=0, cycle=0, explicit=0, has_ids=0
        )

    def end_epoch(self) -> None:
        """Begin a new cycle: prototypes from the memory, and labels refined by them.

        From the first call on no cycle ends by itself. Before the first training step nothing
        happens. Under ``torch.distributed`` all ranks have to call it; it waits for none of them,
        and with ``shard`` the cycle begins in the next step.
        """
        self._changes += 1
        self.counters.set(explicit=1 + self._due() + (self.counters["step"] > 0))
        if self._is_whole():
            self.catch_up()

    def refined_labels(self) -> RefinedLabels:
        """The samples whose label in use is not the given one; one synchronisation on CUDA.

        With ``shard`` all ranks call it: the given label is with the rank that holds the sample.
        """
        self.catch_up()
        return self.prototypes.refined_labels()

    def run(self, batch: Batch) -> Tensor:
        if self.training:
            return super().run(batch)
        self.decision = MixingDecision.trusting(batch)
        return call_loss(self.loss, embed_batch(self.head, batch))

    def judge(self, batch: Batch) -> Judgement:
        self.catch_up()
        # The features keep their graph, which the clustering loss needs.
        dtype = torch.promote_types(batch.embeddings.dtype, torch.float32)
        rows = replace(batch, indices_tuple=None, ref_emb=None, ref_labels=None)
        everyone = gather_batch(rows.to(dtype))  # the rows of all ranks
        if len(everyone) == 0:
            return Judgement(MixingDecision.trusting(batch))
        if self.counters["cycle"] < self.warmup:
            return Judgement(MixingDecision.trusting(batch), memo=(everyone, everyone.labels))
        with torch.no_grad():
            decision = self._decide(everyone)
        given = {name: value for name, value in vars(decision).items() if value is not None}
        own = {name: batch.own_rows(everyone, value) for name, value in given.items()}
        return Judgement(replace(decision, **own), memo=(everyone, decision.labels))

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        decision = judgement.decision
        assert isinstance(decision, MixingDecision)
        if self.weights is not None:  # Eq. 8; ones in warm-up, in which the loss is tried
            batch = batch.reweight(decision.weight)
        if decision.labels is None:  # warm-up, or no row on any rank
            return call_loss(self.loss, embed_batch(self.head, batch))
        batch = replace(batch, labels=decision.labels)
        if decision.draws is not None and decision.share is not None:  # Eq. 4
            keep = self.head is None  # a mixture of unit vectors is none
            mixed = mix(batch.embeddings, decision.draws, decision.share, keep_length=keep)
            batch = batch.extended(mixed)
        batch = embed_batch(self.head, batch)
        if self.similarity:
            value = call_loss(self.loss, batch)  # Eq. 7
        else:
            value = zero_with_graph(batch.embeddings, self.parameters())
        if self.clustering == 0:
            return value
        everyone, labels = judgement.memo
        with torch.autocast(batch.embeddings.device.type, enabled=False):  # Eq. 11
            losses = self.prototypes.clustering_loss(everyone.embeddings, labels, self.temperature)
        if everyone.sample_weight is not None:
            losses = losses * everyone.sample_weight.to(losses.dtype)
        return value + (self.clustering * losses.mean()).to(value.dtype)

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        if judgement.memo is None:  # no row on any rank
            return
        everyone, _ = judgement.memo
        features, ids = everyone.embeddings.detach(), everyone.sample_ids
        self.prototypes.remember(features, everyone.labels, ids)
        step, seen = self.counters["step"] + 1, self.counters["seen"] + len(everyone)
        self.counters.set(step=step, seen=seen, has_ids=int(ids is not None))
        if self._is_whole():
            self.catch_up()

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        self.prototypes.memory.dealt.require_ranks()
        require_width(batch, self.feature_size, "feature_size")
        queue = pml.queue_size(self._innermost)
        if self.mixing and queue is not None and 2 * len(batch) > queue:
            raise ValueError(
                f"CrossBatchMemory must be as large as a batch with its mixed rows, "
                f"{2 * len(batch)}, got {queue}"
            )
        limits = [("labels", batch.labels, self.num_classes, "num_classes of PrototypicalMixer")]
        if (ids := batch.sample_ids) is not None:
            size = len(self.prototypes.memory)
            limits.append(("sample_ids", ids, size, "memory_size of PrototypicalMixer"))
        too_large = (batch.embeddings.abs() > _LARGEST).any()
        message = f"embeddings must be at most {_LARGEST:.0e} in size for PrototypicalMixer"
        return [*(in_range(*limit) for limit in limits), ValueCheck(too_large, message)]

    def extra_repr(self) -> str:
        return (
            f"warmup={self.warmup}, cycles={self.cycles}, max_retrieved={self.max_retrieved}, "
            f"clustering={self.clustering}, weights={self.weights!r}, mixing={self.mixing}, "
            f"refinement={self.refinement}, similarity={self.similarity}"
        )

    def _loss_checks(self, batch: Batch) -> list[ValueCheck]:
        """What is inside is asked about rows as wide as the head's."""
        asks = isinstance(self.loss, LossWrapper) or self._loss_width is not None
        if self.head is not None and asks:
            if self._width is None:
                self._width = output_width(self.head, self.feature_size)
            row = batch.embeddings.new_empty(1, self._width)
            batch = replace(batch, embeddings=row.expand(len(batch), -1))
        return super()._loss_checks(batch)

    def _decide(self, everyone: Batch) -> MixingDecision:
        """The decision on all ranks' rows."""
        prototypes = self.prototypes
        labels = prototypes.labels_in_use(everyone.labels, everyone.sample_ids)
        densities = prototypes.log_density(everyone.embeddings.detach())  # (N, C), Eq. 3
        highest, nearest = densities.max(dim=1)
        given = densities.gather(1, everyone.labels.unsqueeze(1)).squeeze(1)
        draws, share = None, None
        if self.mixing:  # Eq. 5
            beta: Any = {"alpha": self.alpha, "beta": self.beta, "generator": self._generator()}
            draws, share = draw_mixture(nearest, prototypes.means, prototypes.variances, **beta)
        weight = torch.ones_like(highest)
        if self.weights is not None:  # Eq. 8
            tempered = self.weights == "tempered"
            weight = density_weights(highest, self.feature_size if tempered else 1.0)
        return MixingDecision(
            keep=torch.ones_like(labels, dtype=torch.bool),
            weight=weight,
            score=torch.where(given > -torch.inf, given - highest, 0.0),
            judged=everyone.real & (given > -torch.inf),
            suggested_labels=nearest,
            labels=labels,
            draws=draws,
            share=share,
        )

    def _generator(self) -> torch.Generator:
        """A generator of this step alone, on the CPU: the same numbers on every device and rank."""
        seed, step = self.counters["seed"], self.counters["step"]
        return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)

    def _is_whole(self) -> bool:
        """Whether the memory is, so that a cycle may begin where a rank is alone."""
        return self.prototypes.memory.ranks == 1

    def _due(self) -> int:
        """How many cycles have yet to begin."""
        explicit, seen = self.counters["explicit"], self.counters["seen"]
        return explicit - 1 if explicit else int(seen >= len(self.prototypes.memory))

    def catch_up(self) -> None:
        """Begin the cycles that have yet to begin; ranks with parts do so together."""
        for _ in range(self._due()):
            self._begin_cycle()

    def _begin_cycle(self) -> None:
        cycle, explicit = self.counters["cycle"] + 1, self.counters["explicit"]
        if cycle >= self.warmup:
            # What begins in inference mode must be good for training, too.
            with torch.inference_mode(False), torch.no_grad():
                self.prototypes.estimate()
                if self.refinement and self.counters["has_ids"]:
                    k = retrieval_number(cycle - self.warmup + 1, self.cycles, self.max_retrieved)
                    self.prototypes.refine(k, cycle)
        self.counters.set(cycle=cycle, seen=0, explicit=explicit - (explicit > 1))
