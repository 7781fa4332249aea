"""What labelled features say of each sample: of its neighbours, and how near the classes are."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from noisydml.functional.class_evidence import leave_one_out_similarity, near_identical
from noisydml.functional.neighbors import REPEATED, may_be_own, neighbor_weights
from noisydml.functional.parts import Whole
from noisydml.memory.index import Metric, NeighborIndex, TorchIndex
from noisydml.memory.neighbors import default_index
from noisydml.memory.whitened import FEW, FOLDS, SHARPNESS, Whitened

_ALL, _SOME = 128, 64  # classes that a sample is compared with: all, or the nearest of more
_COMPANIONS = 5  # labels of a class for each neighbour that may be the sample itself
_CROWD = 15  # labels a class, on average, from which on there is a core, and neighbours suffice
_NEVER = -1e4  # the logit of what is out of the question


class Sample(Whitened):
    """What stays the same however much the labels are trusted; rows of a class lie together."""

    def __init__(
        self,
        features: Tensor,
        codes: Tensor,
        num_classes: int,
        trust: Tensor,
        fold: Tensor,
        k: int,
        index: str | NeighborIndex | None,
        metric: Metric,
        parts: Whole | None = None,
        repeats: bool = False,
    ) -> None:
        super().__init__(features, codes, num_classes, metric, parts)
        parts, everybody = self.parts, torch.arange(len(codes), device=codes.device)
        weights = trust.masked_fill(codes < 0, 0)
        directions = self.all_directions(weights)
        distance, near = self.nearest(directions, codes, everybody, parts.size, k, index)
        copies = near_identical(directions, distance, near, parts)
        del directions
        self.groups = copies[parts.own]  # the number of a copy that stands for all
        everyone = torch.arange(parts.size, device=codes.device)
        alone = self._count(everyone, weights)
        if bool((copies != everyone).any()) and 2 * self._count(copies, weights) < alone:
            # Classes of one object each: equal rows are all that there is to judge by.
            copies = everyone
            self._count(copies, weights)
        # More copies than half of the neighbours would be all that a sample is judged by: then one
        # of each voter speaks for it, and nobody for copies of that many labels.
        many = max(k // 2, 1)
        self.speaks_alone = bool((torch.bincount(copies) > many).any())
        asked_of = codes
        if self.speaks_alone:
            there = (parts.everyone(codes) >= 0).nonzero().squeeze(1)
            first = torch.full_like(self.voters, parts.size)
            first.scatter_reduce_(0, self.voter[there], there, "amin")
            quiet = (first[self.voter] != everyone) | (self.labels_of[copies] > many)
            asked_of = codes.masked_fill(quiet[parts.own], -1)
        self.number_labelled = int(parts.total((self.weights > 0).sum()))
        self.crowded = self.number_labelled >= _CROWD * num_classes
        self.fold = parts.everyone(fold)[self.copies]
        changed = self.choose_shrinkage(self.weights, self.fold, k)
        few = parts.size < FEW * features.shape[1]
        if few:  # by whom its own label would draw a sample to others of its class
            for part in range(FOLDS):
                held_out = self.fold == part
                asked = held_out.nonzero().squeeze(1)
                number = int(parts.total(held_out.sum()))
                directions = self.all_directions(weights.masked_fill(held_out, 0))
                apart, found = self.nearest(directions, asked_of, asked, number, k, index)
                distance, near = (each[:, : found.shape[1]] for each in (distance, near))
                distance[asked], near[asked] = apart, found
        directions = self.all_directions(weights)
        if (changed or self.speaks_alone) and not few:
            distance, near = self.nearest(directions, asked_of, everybody, parts.size, k, index)
        self.near = near
        if repeats:
            most = (self.sizes(self.weights) / _COMPANIONS).long().clamp_max(REPEATED)  # (C,)
        for rows in self.blocks():
            seen = near[rows].long()
            own_copy = copies[seen.clamp_min(0)] == self.copies[rows].unsqueeze(1)
            apart = distance[rows].masked_fill_((seen < 0) | own_copy, math.inf)
            if repeats:
                label = self.all_classes[seen.clamp_min(0)].masked_fill(seen < 0, -1)
                own = self.classes[rows]
                apart.masked_fill_(may_be_own(label, own, most[own]), math.inf)
            distance[rows] = neighbor_weights(apart, SHARPNESS)
        self.votes = distance
        self._candidates(directions)

    def _count(self, copies: Tensor, weights: Tensor) -> int:
        """Make copies one voter, and say how many samples can be judged by others then.

        A voter is all copies of a sample that have one label: none of them is to judge it.
        """
        parts = self.parts
        self.copies = copies[parts.own]
        self.weights = weights / torch.bincount(copies, minlength=parts.size)[self.copies]
        keys = copies * self.num_classes + self.all_classes
        self.voters, self.voter = torch.unique(keys, return_inverse=True)
        voted = self.voted(parts.everyone(self.weights))
        self.own_weights = voted[self.voter[parts.own]]
        # By their number, of the copies that stand for all of their group.
        groups = self.voters[voted > 0] // self.num_classes
        self.labels_of = torch.bincount(groups, minlength=parts.size)
        self.disagree = self.labels_of[self.copies] > 1  # copies have another label
        self.any_disagree = bool((self.labels_of > 1).any())
        # What others of its class have to weigh, so that it can be judged: where copies disagree
        # half of a sample at least, for else the class may be known by what is wrong of others.
        half = 0.5 * weights
        self.least = torch.where(self.disagree, half, 1e-6)
        others = self.sizes(self.weights)[self.classes] - self.own_weights
        return int(parts.total((self.labelled & (others > half)).sum()))

    def voted(self, weights: Tensor) -> Tensor:
        """(V,) what each voter weighs, of the (N,) weights of all samples of all ranks."""
        return weights.new_zeros(len(self.voters)).index_add_(0, self.voter, weights)

    def copies_in(self, rows: Tensor, voted: Tensor) -> Tensor:
        """(B, K) what the copies of (B,) samples weigh in each of their candidates."""
        keys = self.copies[rows].unsqueeze(1) * self.num_classes + self.columns[rows]
        place = torch.searchsorted(self.voters, keys).clamp_max(len(self.voters) - 1)
        return torch.where(self.voters[place] == keys, voted[place], 0.0)

    def _candidates(self, directions: Tensor) -> None:
        """The classes each sample is compared with, and what the rest of them are to it."""
        size, number = len(self.codes), self.num_classes
        self.rest: Tensor | None = None  # (N, 2) mean and variance of the other similarities
        if number <= _ALL:
            self.columns = torch.arange(number, device=self.codes.device).expand(size, number)
            self.own = self.classes
        else:
            self._nearest_classes(directions)
        # Where the transition from a candidate to the label stands among all that occur: rows of
        # a class lie together, so that no pair is in two groups.
        self.pair = self.near.new_empty(self.columns.shape)
        ends = torch.bincount(self.classes).cumsum(0)
        targets = torch.arange(0, size, self.block, device=ends.device) + self.block
        targets = targets.clamp_max(size)
        cuts = torch.unique(ends[torch.searchsorted(ends, targets)]).tolist()
        self.pairs, occur = 0, [self.classes[:0]]
        for rows in map(slice, [0, *cuts], cuts):
            keys = self.columns[rows] + number * self.classes[rows].unsqueeze(1)
            found, pair = torch.unique(keys, return_inverse=True)
            self.pair[rows] = (pair + self.pairs).int()
            self.pairs += len(found)
            if self.parts.ranks > 1:
                occur.append(found)
        if self.parts.ranks > 1:  # the same pair may occur on several ranks
            here = torch.cat(occur)
            everywhere = torch.unique(self.parts.everyone(here))
            self.pair = torch.searchsorted(everywhere, here).int()[self.pair.long()]
            self.pairs = len(everywhere)
        # In which column each neighbour votes; one more for a class that is no candidate.
        self.ballot = torch.empty_like(self.near, dtype=torch.uint8)
        for rows in self.blocks():
            label = self.all_classes[self.near[rows].clamp_min(0)]
            if self.rest is not None:
                columns = self.columns[rows].long()
                place = torch.searchsorted(columns, label).clamp_max(_SOME - 1)
                label = torch.where(columns.gather(1, place) == label, place, _SOME)
            self.ballot[rows] = label.to(torch.uint8)

    def _nearest_classes(self, directions: Tensor) -> None:
        size, number = len(self.codes), self.num_classes
        centers = normalize(self.sums(directions.__getitem__, self.weights))
        index = default_index(size, number, directions.device)
        index.build(centers)
        exact = TorchIndex()
        exact.build(centers)
        # Sums over all classes, of which those of the candidates are taken away.
        first, second = centers.sum(dim=0), centers.T @ centers
        self.columns = self.near.new_empty(size, _SOME)
        self.rest = directions.new_empty(size, 2)
        for rows in self.blocks():
            block, classes = directions[rows], self.classes[rows].unsqueeze(1)
            column = index.search(block, _SOME).position
            short = (column < 0).any(dim=1).nonzero().squeeze(1)
            column[short] = exact.search(block[short], _SOME).position
            held = (column == classes).any(dim=1, keepdim=True)
            column[:, -1:] = torch.where(held, column[:, -1:], classes)
            column = column.sort(dim=1).values
            chosen, _ = leave_one_out_similarity(
                block, centers, classes.squeeze(1), self.own_weights[rows], column
            )
            left = number - _SOME
            mean = (block @ first - chosen.sum(dim=1)) / left
            square = ((block @ second * block).sum(dim=1) - chosen.square().sum(dim=1)) / left
            self.columns[rows] = column.int()
            self.rest[rows] = torch.stack([mean, (square - mean.square()).clamp_min(0)], dim=1)
        self.own = (self.columns == self.classes.unsqueeze(1)).int().argmax(dim=1)


class Setting(NamedTuple):
    """The numbers of a round."""

    temperature: float
    part: float  # of the neighbours
    size: float  # the power of the classes' sizes
    none: float  # share of the samples that are rather of none of the classes
    edge: float  # how sharply these are told from the others
    rate: float


class Evidence(NamedTuple):
    """What centers and neighbours say of the class of some samples."""

    similarity: Tensor  # (B, K)
    votes: Tensor | None  # (B, K + 1) logarithms; the last is the mean of the other classes
    rest: Tensor | None  # (B, 3) of the similarities to the other classes: mean, variance, most
    sizes: Tensor  # (B, K) logarithms, over the mean size
    num_classes: int

    def logits(self, settings: list[Setting]) -> Tensor:
        """(G, B, K + 1) of each candidate and of all other classes, for each of G settings."""
        numbers = self.similarity.new_tensor([setting[:3] for setting in settings])
        temperature, part, size = numbers.T.unsqueeze(2)  # (G, 1) each
        logits = self.similarity / temperature.unsqueeze(2)
        logits.addcmul_(size.unsqueeze(2), self.sizes)
        if self.votes is not None:
            logits.addcmul_(part.unsqueeze(2), self.votes[:, :-1])
        logits = pad(logits, (0, 1), value=_NEVER)
        if self.rest is not None:
            # The mean of exp(s / T) over similarities that are normally distributed.
            mean, variance, most = (self.rest / temperature.unsqueeze(2)).unbind(dim=2)
            others = torch.minimum(mean + variance / (2 * temperature), most)
            voted = 0 if self.votes is None else part * self.votes[:, -1]
            logits[..., -1] = others + voted + math.log(self.num_classes - self.similarity.shape[1])
        return logits

    def softmax(self, setting: Setting, threshold: Tensor) -> Tensor:
        """(B, K + 2) probability of each candidate, of all other classes, and of none of them."""
        logits = self.logits([setting]).squeeze(0)
        nothing = logit_of_none(nearest_class(logits), threshold, setting.edge)
        return torch.cat([logits, nothing.unsqueeze(1)], dim=1).softmax(dim=1)


def nearest_class(logits: Tensor) -> Tensor:
    """The logit of each sample's nearest candidate."""
    return logits[..., :-1].amax(dim=-1)


def thresholds_of_none(nearest: Tensor, shares: list[float]) -> Tensor:
    """(..., S) logits that the nearest class of such shares of the samples is below.

    Args:
        nearest: (..., B) the logit of each sample's nearest class.
        shares: S of them.
    """
    size = nearest.shape[-1]
    if size == 0 or not any(shares):
        return nearest.new_full((*nearest.shape[:-1], len(shares)), _NEVER)
    ordered = pad(nearest.sort(dim=-1).values, (0, 1), value=_NEVER)
    places = [int(share * size) if share > 0 else size for share in shares]
    return torch.stack([ordered.select(-1, place) for place in places], dim=-1)


def logit_of_none(nearest: Tensor, threshold: Tensor, edge: float | Tensor) -> Tensor:
    """Of each sample, by how far its nearest class is below the threshold."""
    return threshold + edge * (threshold - nearest)
