"""Labelled features in a space in which classes have the same spread in every direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from noisydml.functional.class_evidence import NUMBER_OF_SETTINGS, held_out_likelihood, vote_shares
from noisydml.functional.neighbors import neighbor_weights
from noisydml.functional.parts import Whole
from noisydml.functional.whitening import row_blocks, shrinkage_of_few, within_class_whitening
from noisydml.memory.index import Metric, NeighborIndex
from noisydml.memory.neighbors import Neighborhood, default_index
from noisydml.memory.sharded import ShardedNeighborhood

SHARPNESS = 8.0  # of the neighbours' votes
FOLDS = 5  # parts of the labels, to be held out in turn
# What the covariance inside the classes is mixed with at least of the same in all directions, and
# from how many samples a column on. The first is for features of a pretrained network, the others
# where directions in which classes hardly vary tell them apart: docs/judge.md, "On measurements".
FEW = 20  # samples a column: with fewer a covariance fits its own labels
_SHRINKAGES = ((0.5, FEW), (0.1, 5), (0.02, 2))
FEWEST = 16  # labels held out, of which something follows
_LEAST, _HELD_OUT = 200, 1000  # labels by which one of these is chosen
_PAIRS = 2**23  # of them and classes, at most
A_TENTH, _BEYOND_CHANCE = 0.1, 1.65  # of what is gained, and standard errors (95 %)
_HEIGHT = 3.0  # of the point from which features are seen, in spreads of a class


class Whitened:
    """Labelled features; what they are weighted with, and are whitened by, may change.

    Args:
        features: (N, D) float32, those of a class together.
        codes: (N,) int64 classes, -1 where there is none.
        num_classes: C.
        metric: ``"euclidean"`` to see features from a point above their mean, so that distances
            count.
        parts: where ranks have a part of the rows each.

    Attributes:
        shrinkage: of the covariance, at least, and from how many samples a column on.
        block: rows at once.
    """

    block = 4096

    def __init__(
        self,
        features: Tensor,
        codes: Tensor,
        num_classes: int,
        metric: Metric,
        parts: Whole | None = None,
    ) -> None:
        self.lifted = metric == "euclidean"
        self.features = pad(features, (0, 1), value=_HEIGHT) if self.lifted else features
        self.parts = Whole(len(codes)) if parts is None else parts
        self.codes, self.num_classes = codes, num_classes
        self.classes, self.labelled = codes.clamp_min(0), codes >= 0
        self.all_classes = self.parts.everyone(self.classes)
        self.shrinkage = _SHRINKAGES[0]

    def blocks(self) -> list[slice]:
        size = len(self.codes)
        return [slice(start, start + self.block) for start in range(0, size, self.block)]

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

    def sums(self, directions: Callable[[slice], Tensor], weights: Tensor) -> Tensor:
        """(C, D) of the directions of each class, by blocks of rows, with these weights."""
        sums = weights.new_zeros(self.num_classes, self.features.shape[1])
        for rows in self.blocks():
            weighted = directions(rows) * weights[rows].unsqueeze(1)
            sums.index_add_(0, self.classes[rows], weighted)
        return self.parts.total(sums)

    def sizes(self, weights: Tensor) -> Tensor:
        """(C,) of the classes, with these weights."""
        sizes = weights.new_zeros(self.num_classes)
        return self.parts.total(sizes.index_add_(0, self.classes, weights))

    def nearest(
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
        hood = Neighborhood(index, "cosine")
        if parts.ranks > 1:
            hood = ShardedNeighborhood(index, "cosine", parts.start)
        hood.build(directions, codes)
        distance = directions.new_empty(len(asked), min(k, hood.size))
        near = torch.empty_like(distance, dtype=torch.int32)
        for some in parts.blocks(len(asked), self.block):
            rows = asked[some]
            distance[some], position, _ = hood.neighbors(
                directions[rows], self.codes[rows], k, rows + parts.start
            )
            if parts.ranks == 1:
                position = torch.where(position < 0, -1, there[position.clamp_min(0)])
            near[some] = position.int()
        return distance, near

    def choose_shrinkage(self, weights: Tensor, fold: Tensor, k: int) -> bool:
        """Take another shrinkage if centers and neighbours predict labels held out better with it.

        It has to gain a tenth more over the sizes of the classes, and more than by chance.

        Args:
            weights: (N,) float32, of the labels.
            fold: (N,) integers, the part in which each is held out.
            k: number of neighbours.
        """
        gains, best = self.gains(weights, fold, k, _SHRINKAGES), 0
        if (number := gains.shape[1]) >= FEWEST:
            more = gains - gains[0]
            least = _BEYOND_CHANCE * more.std(dim=1) / math.sqrt(number)
            least = torch.maximum(least, A_TENTH * gains[0].mean())
            more = torch.where(more.mean(dim=1) > least, more.mean(dim=1), 0.0)
            best = int(self.parts.first(more).argmax())
        self.shrinkage = _SHRINKAGES[best]
        return best > 0

    def gains(
        self, weights: Tensor, fold: Tensor, k: int, shrinkages: Sequence[tuple[float, int]]
    ) -> Tensor:
        """(S, n) how much better than the classes' sizes centers and neighbours predict labels.

        The n labels are held out, fold by fold, until there are enough; each of S shrinkages has
        the temperature, the part of the neighbours and the rate that it does best with.
        """
        most, number = min(_HELD_OUT, max(_LEAST, _PAIRS // self.num_classes)), 0
        everyone, by_size = self.parts.everyone, []
        logs: list[list[Tensor]] = [[] for _ in shrinkages]
        for part in range(FOLDS):
            test = fold == part
            teaches = weights.masked_fill(test, 0)
            taught = self.sizes(teaches)
            test &= (taught[self.classes] > 0) & (weights > 0)
            drawn, asked = self.drawn(test, most)
            by_size.append(everyone((taught / taught.sum()).log()[self.classes[asked]]))
            for told, self.shrinkage in zip(logs, shrinkages, strict=True):
                told.append(everyone(self._predicted(teaches, asked, drawn, k).T))
            number += drawn
            if number >= most:
                break
        if number == 0:
            return weights.new_zeros(len(shrinkages), 0, dtype=torch.float64)
        found = torch.stack([torch.cat(told) for told in logs]).double()  # (S, n, G)
        which = found.mean(dim=1).argmax(dim=1)
        return found[range(len(which)), :, which] - torch.cat(by_size)

    def _predicted(self, teaches: Tensor, asked: Tensor, number: int, k: int) -> Tensor:
        """(G, M) how well those who teach predict labels of (M,) rows, ``number`` on all ranks."""
        directions = self.all_directions(teaches)
        centers = normalize(self.sums(directions.__getitem__, teaches)).T
        teachers = self.codes.masked_fill(teaches <= 0, -1)
        distance, near = self.nearest(directions, teachers, asked, number, k, None)  # so few: exact
        votes = neighbor_weights(distance.masked_fill(near < 0, math.inf), SHARPNESS)
        near, teaches = near.clamp_min(0).long(), self.parts.everyone(teaches)
        found = [votes.new_zeros(NUMBER_OF_SETTINGS, 0)]
        for rows in row_blocks((len(asked), self.num_classes)):
            ballots = votes.new_zeros(len(asked[rows]), self.num_classes + 1)
            ballots.scatter_add_(1, self.all_classes[near[rows]], votes[rows] * teaches[near[rows]])
            shares = vote_shares(ballots, votes[rows], self.num_classes)[:, :-1]
            similarity = directions[asked[rows]] @ centers
            found.append(held_out_likelihood(similarity, shares, self.classes[asked[rows]]))
        return torch.cat(found, dim=1)
