"""What labelled features say of each sample: of its neighbours, and how near the classes are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from noisydml.functional.judge import (
    leave_one_out_similarity,
    near_identical,
    within_class_whitening,
)
from noisydml.functional.neighbors import neighbor_weights
from noisydml.functional.parts import Whole
from noisydml.memory.index import Metric, NeighborIndex, TorchIndex
from noisydml.memory.neighbors import Neighborhood, default_index
from noisydml.memory.sharded import ShardedNeighborhood

_ALL, _SOME = 128, 64  # classes that a sample is compared with: all, or the nearest of more
_BLOCK = 4096  # rows at once
_NEVER = -1e4  # the logit of what is out of the question
_SHARPNESS = 8.0  # of the neighbours' votes
_HEIGHT = 3.0  # of the point from which features are seen, in spreads of a class


class Sample:
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
    ) -> None:
        # Where distances count, directions are those from a point above the mean of the features.
        self.lifted = metric == "euclidean"
        self.features = pad(features, (0, 1), value=_HEIGHT) if self.lifted else features
        self.parts = parts = Whole(len(codes)) if parts is None else parts
        self.codes, self.num_classes = codes, num_classes
        self.classes, self.labelled = codes.clamp_min(0), codes >= 0
        self.all_classes = parts.everyone(self.classes)
        weights = trust.masked_fill(codes < 0, 0)
        directions = torch.empty_like(self.features)
        matrix = self.whitening(weights)
        for rows in self.blocks():
            directions[rows] = self.directions(matrix, rows)
        distance, self.near = self._neighbors(directions, k, index)
        copies = near_identical(directions, distance, self.near, parts)
        sizes = torch.bincount(copies, minlength=parts.size)
        self.copies = copies[parts.own]
        self.weights = weights / sizes[self.copies]  # copies are one voter
        # What the copies of a sample that have its label weigh: no part of it is to judge it.
        _, same = torch.unique(copies * num_classes + self.all_classes, return_inverse=True)
        voters = self.weights.new_zeros(int(same.max()) + 1)
        voters.index_add_(0, same, parts.everyone(self.weights))
        self.own_weights = voters[same[parts.own]]
        self.fold = parts.everyone(fold)[self.copies]
        for rows in self.blocks():
            near = self.near[rows].long()
            own_copy = copies[near.clamp_min(0)] == self.copies[rows].unsqueeze(1)
            seen = distance[rows].masked_fill_((near < 0) | own_copy, math.inf)
            distance[rows] = neighbor_weights(seen, _SHARPNESS)
        self.votes = distance
        self._candidates(directions)

    def blocks(self) -> list[slice]:
        size = len(self.codes)
        return [slice(start, start + _BLOCK) for start in range(0, size, _BLOCK)]

    def whitening(self, weights: Tensor) -> Tensor:
        """(D, D) the matrix that whitens the features with these weights."""
        rows = self.features[:, :-1] if self.lifted else self.features
        matrix = within_class_whitening(
            rows, self.classes, weights, self.num_classes, parts=self.parts
        )
        if self.lifted:
            matrix = pad(matrix, (0, 1, 0, 1))
            matrix[-1, -1] = 1
        return matrix

    def directions(self, matrix: Tensor, rows: Any) -> Tensor:
        """Unit vectors of some of the rows in whitened space."""
        return normalize(self.features[rows] @ matrix)

    def _neighbors(
        self, directions: Tensor, k: int, index: str | NeighborIndex | None
    ) -> tuple[Tensor, Tensor]:
        parts, labelled = self.parts, self.labelled.nonzero().squeeze(1)
        if index is None:
            index = default_index(parts.size, len(labelled), self.codes.device)
        metric = index.metric if isinstance(index, NeighborIndex) else "cosine"
        hood = Neighborhood(index, metric)
        if parts.ranks > 1:
            hood = ShardedNeighborhood(index, metric, parts.start)
        hood.build(directions, self.codes)
        width = min(k, hood.size)
        distance = directions.new_empty(len(self.codes), width)
        near = torch.empty_like(distance, dtype=torch.int32)
        entries = torch.arange(len(self.codes), device=self.codes.device) + parts.start
        for rows in parts.blocks(len(self.codes), _BLOCK):
            distance[rows], position, _ = hood.neighbors(
                directions[rows], self.codes[rows], k, entries[rows]
            )
            if parts.ranks == 1:
                position = torch.where(position < 0, -1, labelled[position.clamp_min(0)])
            near[rows] = position.int()
        return distance, near

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
        targets = torch.arange(_BLOCK, size + _BLOCK, _BLOCK, device=ends.device).clamp_max(size)
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
        sums = directions.new_zeros(number, directions.shape[1])
        for rows in self.blocks():
            weighted = directions[rows] * self.weights[rows].unsqueeze(1)
            sums.index_add_(0, self.classes[rows], weighted)
        centers = normalize(self.parts.total(sums))
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
    none: float  # share of the samples that are rather of none of the classes
    edge: float  # how sharply these are told from the others
    rate: float


class Evidence(NamedTuple):
    """What centers and neighbours say of the class of some samples."""

    similarity: Tensor  # (B, K)
    votes: Tensor | None  # (B, K + 1) logarithms; the last is the mean of the other classes
    rest: Tensor | None  # (B, 3) of the similarities to the other classes: mean, variance, most
    num_classes: int

    def logits(self, settings: list[Setting]) -> Tensor:
        """(G, B, K + 1) of each candidate and of all other classes, for each of G settings."""
        numbers = self.similarity.new_tensor([setting[:2] for setting in settings])
        temperature, part = numbers.T.unsqueeze(2)  # (G, 1) each
        logits = self.similarity / temperature.unsqueeze(2)
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
