"""What labelled features say of each sample: of its neighbours, and how near the classes are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from noisydml.functional.judge import (
    held_out_likelihood,
    leave_one_out_similarity,
    near_identical,
    shrinkage_of_few,
    vote_shares,
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
FOLDS = 5  # parts of the labels, to be held out in turn
# What the covariance inside the classes is mixed with at least of the same in all directions. The
# first is for features of a pretrained network, the others where directions in which classes hardly
# vary tell them apart (docs/judge.md, "Vehicles").
_SHRINKAGES = ((0.5, 20), (0.1, 5), (0.02, 2))
_A_TENTH, _BEYOND_CHANCE = 0.1, 1.65  # of what is gained, and standard errors (95 %)
_FEWEST, _LEAST, _HELD_OUT = 16, 200, 2000  # labels by which one of these is chosen
_PAIRS = 2**25  # of them and classes, at most
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
        self.shrinkage, everybody = _SHRINKAGES[0], torch.arange(len(codes), device=codes.device)
        directions = self.all_directions(weights)
        distance, self.near = self._neighbors(directions, codes, everybody, parts.size, k, index)
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
        self.shrinkage = self._best_shrinkage(k, index)
        if self.shrinkage != _SHRINKAGES[0]:
            directions = self.all_directions(weights)
            distance, self.near = self._neighbors(
                directions, codes, everybody, parts.size, k, index
            )
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

    def drawn(self, rows: Tensor, number: int) -> tuple[int, Tensor]:
        """So many of the rows of all ranks for which (N,) ``rows`` is true, and this rank's."""
        own, chosen = self.parts.own, self.parts.everyone(rows).nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(0)
        some = torch.randperm(len(chosen), generator=generator, device="cpu")[:number]
        chosen = chosen[some.sort().values.to(chosen.device)]
        return len(chosen), chosen[(chosen >= own.start) & (chosen < own.stop)] - own.start

    def whitening(self, weights: Tensor) -> Tensor:
        """(D, D) the matrix that whitens the features with these weights."""
        rows = self.features[:, :-1] if self.lifted else self.features
        number = self.parts.total((weights > 0).sum())
        shrinkage = shrinkage_of_few(*self.shrinkage, rows.shape[1], number)
        matrix = within_class_whitening(
            rows, self.classes, weights, self.num_classes, shrinkage, self.parts
        )
        if self.lifted:
            matrix = pad(matrix, (0, 1, 0, 1))
            matrix[-1, -1] = 1
        return matrix

    def directions(self, matrix: Tensor, rows: Any) -> Tensor:
        """Unit vectors of some of the rows in whitened space."""
        return normalize(self.features[rows] @ matrix)

    def all_directions(self, weights: Tensor) -> Tensor:
        """Those of all rows, whitened with these weights."""
        directions, matrix = torch.empty_like(self.features), self.whitening(weights)
        for rows in self.blocks():
            directions[rows] = self.directions(matrix, rows)
        return directions

    def sums(self, directions: Tensor, weights: Tensor) -> Tensor:
        """(C, D) of the directions of each class, with these weights."""
        sums = directions.new_zeros(self.num_classes, directions.shape[1])
        for rows in self.blocks():
            weighted = directions[rows] * weights[rows].unsqueeze(1)
            sums.index_add_(0, self.classes[rows], weighted)
        return self.parts.total(sums)

    def _neighbors(
        self,
        directions: Tensor,
        codes: Tensor,
        asked: Tensor,
        number: int,
        k: int,
        index: str | NeighborIndex | None,
    ) -> tuple[Tensor, Tensor]:
        """(M, k) distances and rows, -1 for none, of the nearest to (M,) rows that have a code.

        ``number`` is that of the rows asked for on all ranks.
        """
        parts, there = self.parts, (codes >= 0).nonzero().squeeze(1)
        if index is None:
            index = default_index(number, len(there), codes.device)
        metric = index.metric if isinstance(index, NeighborIndex) else "cosine"
        hood = Neighborhood(index, metric)
        if parts.ranks > 1:
            hood = ShardedNeighborhood(index, metric, parts.start)
        hood.build(directions, codes)
        distance = directions.new_empty(len(asked), min(k, hood.size))
        near = torch.empty_like(distance, dtype=torch.int32)
        for some in parts.blocks(len(asked), _BLOCK):
            rows = asked[some]
            distance[some], position, _ = hood.neighbors(
                directions[rows], self.codes[rows], k, rows + parts.start
            )
            if parts.ranks == 1:
                position = torch.where(position < 0, -1, there[position.clamp_min(0)])
            near[some] = position.int()
        return distance, near

    def _best_shrinkage(self, k: int, index: str | NeighborIndex | None) -> tuple[float, int]:
        """That with which centers and neighbours predict labels best that have taught nothing.

        The first, unless another one gains a tenth more over the sizes of the classes, and more
        than by chance.
        """
        most, number = min(_HELD_OUT, max(_LEAST, _PAIRS // self.num_classes)), 0
        everyone, by_size = self.parts.everyone, []
        logs: list[list[Tensor]] = [[] for _ in _SHRINKAGES]
        for fold in range(FOLDS):
            test = self.fold == fold
            teaches = self.weights.masked_fill(test, 0)
            taught = teaches.new_zeros(self.num_classes).index_add_(0, self.classes, teaches)
            taught = self.parts.total(taught)
            test &= (taught[self.classes] > 0) & (self.weights > 0)
            drawn, asked = self.drawn(test, most)
            by_size.append(everyone((taught / taught.sum()).log()[self.classes[asked]]))
            for told, self.shrinkage in zip(logs, _SHRINKAGES, strict=True):
                directions = self.all_directions(teaches)
                found = self._predicted(directions, teaches, asked, drawn, k, index)
                told.append(everyone(found.T))
            number += drawn
            if number >= most:
                break
        if number < _FEWEST:
            return _SHRINKAGES[0]
        found = torch.stack([torch.cat(told) for told in logs]).double()  # (S, n, G)
        which = found.mean(dim=1).argmax(dim=1)
        found = found[range(len(which)), :, which] - torch.cat(by_size)  # (S, n)
        more = found - found[0]
        least = _BEYOND_CHANCE * more.std(dim=1) / math.sqrt(number)
        least = torch.maximum(least, _A_TENTH * found[0].mean())
        more = torch.where(more.mean(dim=1) > least, more.mean(dim=1), 0.0)
        return _SHRINKAGES[int(self.parts.first(more).argmax())]

    def _predicted(
        self,
        directions: Tensor,
        teaches: Tensor,
        asked: Tensor,
        number: int,
        k: int,
        index: str | NeighborIndex | None,
    ) -> Tensor:
        """(G, M) how well those who teach predict labels of (M,) rows, ``number`` on all ranks."""
        centers = normalize(self.sums(directions, teaches))
        teachers = self.codes.masked_fill(teaches <= 0, -1)
        distance, near = self._neighbors(directions, teachers, asked, number, k, index)
        near = near.long()
        weights = self.parts.everyone(teaches)[near.clamp_min(0)]
        votes = neighbor_weights(distance.masked_fill(near < 0, math.inf), _SHARPNESS)
        ballots = votes.new_zeros(len(asked), self.num_classes + 1)
        ballots.scatter_add_(1, self.all_classes[near.clamp_min(0)], votes * weights)
        shares = vote_shares(ballots, votes, self.num_classes)[:, :-1]
        return held_out_likelihood(directions[asked] @ centers.T, shares, self.classes[asked])

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
        centers = normalize(self.sums(directions, self.weights))
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
