"""Class prototypes over a memory of features, and the labels that they refine (TITAN)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisydml import distributed
from noisydml.functional import titan
from noisydml.functional.checks import require_count, require_positive
from noisydml.functional.neighbors import nearest_of_parts
from noisydml.functional.products import unit_rows
from noisydml.memory.centers import EMPTY
from noisydml.memory.features import FeatureMemory
from noisydml.memory.state import AllOrNothing, require_state_in_range


class RefinedLabels(NamedTuple):
    """The labels that have been changed: (R,) int64 each."""

    sample_ids: Tensor  # positions in the data set
    old: Tensor  # the labels as given
    new: Tensor  # the labels in use
    cycle: Tensor  # since which the new one has been in use


class Prototypes(AllOrNothing):
    """A Gaussian for every class, estimated from the latest features of a data set.

    Args:
        num_classes: C.
        feature_size: D.
        memory_size: N, samples of the data set.
        variance_floor: no variance is below this share of what is usual in its dimension.
        by_direction: whether features and means are compared by their :meth:`directions`.
        shard: whether each rank of ``torch.distributed``, which is initialised by then, holds a
            part of the memory, of which :class:`~noisydml.memory.FeatureMemory` says more. All
            else is of all samples, on every rank. All ranks make the same calls of
            :meth:`remember`, with the same rows, and of :meth:`estimate`, :meth:`refine` and
            :meth:`refined_labels`, in which they wait for one another.

    Attributes:
        memory: the :class:`~noisydml.memory.FeatureMemory`, with the labels as given.
        means, variances: (C, D) float32, those of the last :meth:`estimate`.
        counts: (C,) int64; a class of which the memory held nothing has no prototype.
        refined: (N,) int64, the label of each sample that was relabelled, -1 for the others.
        refined_in: (N,) int64, the cycle since which it has had that label, -1 for the others.

    Everything is in ``state_dict``: ``C (8 D + 8) + N (4 D + 32)`` bytes. Densities and
    directions are computed in float32, also where the state is of half precision.

    Example:
        >>> import torch
        >>> from noisydml.memory.prototypes import Prototypes
        >>> prototypes = Prototypes(2, feature_size=1, memory_size=5)
        >>> features = torch.tensor([[0.0], [0.1], [0.8], [1.0], [0.9]])
        >>> prototypes.remember(features, torch.tensor([0, 0, 0, 1, 1]), torch.arange(5))
        >>> prototypes.estimate()
        >>> prototypes.refine(k=3, cycle=1)
        >>> ids, old, new, _ = prototypes.refined_labels()
        >>> ids, old, new
        (tensor([2]), tensor([0]), tensor([1]))
    """

    means: Tensor
    variances: Tensor
    counts: Tensor
    refined: Tensor
    refined_in: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_size: int,
        memory_size: int,
        variance_floor: float = 0.1,
        *,
        by_direction: bool = False,
        shard: bool = False,
    ) -> None:
        super().__init__()
        require_count("num_classes", num_classes)
        require_count("feature_size", feature_size)
        require_positive("variance_floor", variance_floor)
        self.num_classes, self.variance_floor = num_classes, float(variance_floor)
        self.by_direction = by_direction
        self.memory = FeatureMemory(memory_size, feature_size, normalize=False, shard=shard)
        self.register_buffer("means", torch.zeros(num_classes, feature_size))
        self.register_buffer("variances", torch.ones(num_classes, feature_size))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("refined", torch.full((memory_size,), EMPTY))
        self.register_buffer("refined_in", torch.full((memory_size,), EMPTY))

    def refuse_values(self, state: dict[str, Any], prefix: str) -> None:
        """Raise ValueError for a state that these prototypes cannot have had."""
        limits = {"means": -math.inf, "variances": 0, "counts": 0, "refined_in": EMPTY}
        for name, least in limits.items():
            require_state_in_range(f"{prefix}{name}", state.get(f"{prefix}{name}"), least)
        for name in ("refined", "memory.labels"):
            labels = state.get(f"{prefix}{name}")
            require_state_in_range(f"{prefix}{name}", labels, EMPTY, self.num_classes)

    @property
    def center(self) -> Tensor:
        """(D,) the mean of the class means, from which directions are seen."""
        return titan.mean_of_present(self.means.float(), self.counts > 0)

    def remember(self, features: Tensor, labels: Tensor, sample_ids: Tensor | None) -> None:
        """Keep (B, D) features with their labels as given; in place where they have ids."""
        self.memory.remember(features, labels, sample_ids)

    def estimate(self) -> None:
        """Means and variances from the memory, with the labels in use."""
        refined = self.memory.dealt.part_of(self.refined, EMPTY)
        labels = torch.where(refined != EMPTY, refined, self.memory.labels)
        sum_parts = self._sum_parts if self.memory.ranks > 1 else None
        features = self.memory.features.float()
        gaussians = titan.class_gaussians(features, labels, self.num_classes, sum_parts)
        self.means, variances, self.counts = gaussians
        self.variances = titan.floor_variances(variances, self.counts, self.variance_floor)

    def refine(self, k: int, cycle: int) -> None:
        """Every mean claims its ``k`` nearest samples; all others have their given label again."""
        # Without its id a sample would not be found again.
        given = torch.where(self.memory.sample_ids != EMPTY, self.memory.labels, EMPTY)
        features, means = self._compared(self.memory.features), self._compared(self.means)
        distance, rows = titan.nearest_samples(features, given, means, k, self.counts)
        if self.memory.ranks > 1 and k > 0:
            distance, rows, given = self._of_all_parts(distance, rows, given, k)
        new = titan.claim(given, distance, rows)
        since = torch.where(new == self.refined, self.refined_in, cycle)
        changed = new != given
        self.refined = torch.where(changed, new, EMPTY)
        self.refined_in = torch.where(changed, since, EMPTY)

    def labels_in_use(self, labels: Tensor, sample_ids: Tensor | None) -> Tensor:
        """(B,) the refined labels where there are any, the given ones elsewhere."""
        if sample_ids is None:
            return labels
        refined = self.refined.index_select(0, sample_ids)
        return torch.where(refined != EMPTY, refined, labels)

    def refined_labels(self) -> RefinedLabels:
        """The samples whose label in use is not the one given; waits for the device.

        With ``shard`` all ranks call it.
        """
        ids = (self.refined != EMPTY).nonzero().squeeze(1)
        columns = (self.refined, self.refined_in)
        old = self.memory.labels_of(ids)
        return RefinedLabels(ids, old, *(column.index_select(0, ids) for column in columns))

    def log_density(self, features: Tensor) -> Tensor:
        """(B, C) of (B, D) features; ``-inf`` for classes without a prototype."""
        least = torch.finfo(torch.float32).tiny  # for a variance that half precision made 0
        variances = self.variances.float().clamp_min(least)
        return titan.gaussian_log_density(features, self.means.float(), variances, self.counts)

    def clustering_loss(self, features: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """(B,) how badly (B, D) features fit the mean of their class, with gradient."""
        features, means = self._compared(features), self._compared(self.means)
        return titan.clustering_loss(features, labels, means, self.counts, temperature=temperature)

    def directions(self, features: Tensor) -> Tensor:
        """(B, D) unit vectors from :attr:`center` to each of the features."""
        return unit_rows(features.float() - self.center)

    def _sum_parts(self, tensors: list[Tensor]) -> None:
        self.memory.agree()  # or raises: nobody adds up alone
        distributed.sum_over_ranks(tensors)

    def _of_all_parts(
        self, distance: Tensor, rows: Tensor, given: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Every class's k nearest samples, from the nearest in this part and in those of others.

        Args:
            distance: (C, K) of the nearest in this part.
            rows: (C, K) int64, which of its entries they are.
            given: (P,) int64, the labels as given of all its entries.
            k: how many are wanted.

        Returns:
            (C, K') distances and samples, to the bit those that a whole memory has, and (N,) the
            given labels of these samples, -1 for all others. Each rank merges what was found for
            its share of the classes: O(C k) numbers.
        """
        memory, classes = self.memory, len(distance)
        samples = rows * memory.ranks + memory.dealt.rank
        found = torch.stack([samples, given.take(rows)], dim=1)  # (C, 2, K)
        sizes = [len(range(rank, classes, memory.ranks)) for rank in range(memory.ranks)]
        memory.agree()  # or raises: nobody waits alone
        parts = distributed.deal_rows(distance, sizes)  # (R, B, K)
        samples, labels = distributed.deal_rows(found, sizes).unbind(dim=2)
        distance, place = nearest_of_parts(parts, samples, k)
        samples, labels = (
            each.transpose(0, 1).flatten(1).gather(1, place) for each in (samples, labels)
        )
        memory.agree()
        distance, samples, labels = distributed.gather_rows([distance, samples, labels], sizes)
        samples = samples.clamp_max(len(memory) - 1)  # what stays empty is at no distance
        known = torch.full_like(self.refined, EMPTY)
        known.scatter_reduce_(0, samples.flatten(), labels.flatten(), "amax")
        return distance, samples, known

    def _compared(self, rows: Tensor) -> Tensor:
        """Features or means as they are compared."""
        return self.directions(rows) if self.by_direction else rows
