"""What travels through nested wrappers: one batch, validated once, narrowed on its way down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

IndicesTuple = tuple[Tensor, ...]

_PER_ROW = ("embeddings", "labels", "sample_weight", "sample_ids", "synthetic", "negative_only")


@dataclass(frozen=True, eq=False)
class Batch:
    """The arguments of a loss call, and what the wrappers outside have made of them."""

    embeddings: Tensor  # (B, D)
    labels: Tensor  # (B,)
    indices_tuple: IndicesTuple | None = None
    ref_emb: Tensor | None = None  # (R, D)
    ref_labels: Tensor | None = None  # (R,); None where row i of ref_emb is of sample i
    sample_weight: Tensor | None = None  # (B,)
    sample_ids: Tensor | None = None  # (B,)
    # (B,) bool: rows that a wrapper has added, no samples of the data set. Their sample id is -1
    # where the others have ids. Nobody remembers them or looks them up.
    synthetic: Tensor | None = None
    # (B,) bool: rows that may be negatives of others, but form no positive pair. Turned into pairs
    # when the innermost loss is called, so that they are those of all its rows.
    negative_only: Tensor | None = None
    # Where this rank's rows begin, once those of all ranks have been gathered: nobody inside
    # gathers them a second time.
    first_own: int | None = None
    nested: bool = False  # whether a wrapper outside has handed it on
    check_values: bool = False  # whether the outermost wrapper checks values

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def device(self) -> torch.device:
        """The device of the embeddings; everything else is moved to it."""
        return self.embeddings.device

    @property
    def num_refs(self) -> int:
        """The number of rows of ``ref_emb``, R."""
        return 0 if self.ref_emb is None else len(self.ref_emb)

    @property
    def of_itself(self) -> bool:
        """Whether it is compared with itself, as it is without ``ref_emb``."""
        return self.ref_emb is self.embeddings and self.ref_labels is None

    @property
    def real(self) -> Tensor:
        """(B,) bool, which rows are samples of the data set."""
        if self.synthetic is None:
            return torch.ones_like(self.labels, dtype=torch.bool)
        return self.synthetic.logical_not()

    def real_of(self, chosen: Tensor) -> Tensor:
        """(B,) bool, those of the ``chosen`` rows that are samples of the data set."""
        return chosen if self.synthetic is None else chosen & self.real

    def to(self, dtype: torch.dtype) -> Batch:
        """The batch with embeddings and reference embeddings of that dtype."""
        ref_emb = None if self.ref_emb is None else self.ref_emb.to(dtype)
        return self.changed(embeddings=self.embeddings.to(dtype), ref_emb=ref_emb)

    def judged(self) -> Batch:
        """What a judge of samples sees: no graph, no less than single precision, all pairs."""
        dtype = torch.promote_types(self.embeddings.dtype, torch.float32)
        return Batch(
            self.embeddings.detach().to(dtype),
            self.labels,
            sample_ids=self.sample_ids,
            synthetic=self.synthetic,
            first_own=self.first_own,
        )

    def own_rows(self, everyone: Batch, values: Tensor) -> Tensor:
        """Of ``values``, one a row of the gathered batch ``everyone``, those of this batch."""
        if self.first_own is not None or everyone.first_own is None:
            return values  # the batch is the gathered one itself
        return values.narrow(0, everyone.first_own, len(self))

    def select(self, keep: Tensor) -> Batch:
        """The rows where ``keep`` (B,) is true, pairs and triplets cut and renumbered with them.

        One host synchronisation on CUDA, to learn how many rows are left, and one for every part
        of an ``indices_tuple``. A batch of which every row is kept is returned as it is.
        """
        rows = keep.nonzero().squeeze(1)
        if len(rows) == len(self):
            return self
        kept = {name: values.index_select(0, rows) for name, values in self.per_row().items()}
        selected = self.changed(**kept)
        if self.indices_tuple is None:
            return selected
        position = keep.cumsum(dim=0) - 1  # (B,), of a kept row among the kept ones
        columns: list[Tensor] = []
        for in_batch, in_ref in self.index_columns():
            alive = torch.stack([keep[column] for column in in_batch]).all(dim=0)
            entries = alive.nonzero().squeeze(1)
            columns += [position[column[entries]] for column in in_batch]
            columns += [column[entries] for column in in_ref]
        return replace(selected, indices_tuple=tuple(columns) or None)

    def without_synthetic(self) -> Batch:
        """The samples of the data set alone; asks the host only where a wrapper has added rows."""
        return self if self.synthetic is None else self.select(self.real)

    def changed(self, **tensors: Any) -> Batch:
        """The batch with other tensors; one that is compared with itself still is."""
        if self.of_itself:
            tensors["ref_emb"] = tensors["embeddings"]
        return replace(self, **tensors)

    def per_row(self) -> dict[str, Tensor]:
        """Those of its tensors that have a row for each sample."""
        given = {name: getattr(self, name) for name in _PER_ROW}
        if self.ref_labels is None and not self.of_itself:
            given["ref_emb"] = self.ref_emb
        return {name: value for name, value in given.items() if value is not None}

    def reweight(self, weight: Tensor) -> Batch:
        """The same rows with their ``sample_weight`` multiplied by ``weight`` (B,)."""
        if self.sample_weight is not None:
            weight = weight * self.sample_weight
        return replace(self, sample_weight=weight)

    def extended(self, synthetic: Tensor) -> Batch:
        """Twice the rows: each is followed, B rows later, by the one of ``synthetic`` (B, D).

        Label and weight are those of the row that it was made from. Pairs and triplets are
        repeated among the synthetic rows.
        """
        if self.of_itself:
            return replace(self, ref_emb=None).extended(synthetic)
        if self.ref_emb is not None and self.ref_labels is None:
            return replace(self, ref_labels=self.labels).extended(synthetic)
        own = torch.zeros(len(self), dtype=torch.bool, device=self.device)

        def twice(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else torch.cat([rows, rows])

        columns: list[Tensor] = []
        for in_batch, in_ref in self.index_columns():
            columns += [torch.cat([column, column + len(self)]) for column in in_batch]
            columns += [torch.cat([column, column]) for column in in_ref]
        ids = self.sample_ids
        return replace(
            self,
            embeddings=torch.cat([self.embeddings, synthetic]),
            labels=torch.cat([self.labels, self.labels]),
            indices_tuple=tuple(columns) or None,
            sample_weight=twice(self.sample_weight),
            sample_ids=None if ids is None else torch.cat([ids, torch.full_like(ids, -1)]),
            synthetic=torch.cat([own, own.logical_not()]),
            negative_only=twice(self.negative_only),
        )

    def index_columns(self) -> Iterator[tuple[IndicesTuple, IndicesTuple]]:
        """Of each part of ``indices_tuple``: its columns into the batch, and those into ref_emb."""
        if self.indices_tuple is not None:
            for group in index_groups(self.indices_tuple):
                in_batch = len(group) if self.ref_labels is None else 1
                yield group[:in_batch], group[in_batch:]


def index_groups(indices_tuple: IndicesTuple) -> list[IndicesTuple]:
    """The parts of an indices tuple: the positive and the negative pairs, or the triplets."""
    if len(indices_tuple) == 4:
        return [indices_tuple[:2], indices_tuple[2:]]
    return [indices_tuple]
