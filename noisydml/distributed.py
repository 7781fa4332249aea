"""Pair losses that see the rows of all ranks."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from noisydml import collectives
from noisydml.batch import Batch, batch_columns, index_groups
from noisydml.wrappers.base import Decision, Judgement, LossWrapper


class GatheredLoss(LossWrapper):
    """Computes a loss on the rows of all ranks, kept rows of uneven number included.

    Every rank gathers all rows and computes the same value. Averaging the gradients over the
    ranks, as ``DistributedDataParallel`` does, gives those of one process that saw the
    concatenated batch; a parameter of the loss has that gradient on every rank already.

    Put it around the leaf loss, inside the filters: ``Filter(GatheredLoss(loss))``. Outside
    ``torch.distributed``, and in eval mode, it is the wrapped loss.

    Args:
        loss: as for every wrapper.
        validate_args: as for every wrapper.

    Notes:
        On the wire per step: from each rank the rows of the largest rank, 4 D bytes each in
        float32, 8 bytes for the label, and the optional arguments that are given. A loss that
        draws random numbers must draw the same on all ranks.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import MultiSimilarityLoss
        >>> from noisydml.distributed import GatheredLoss
        >>> loss_fn = GatheredLoss(MultiSimilarityLoss())
        >>> loss_fn(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.6566)
    """

    def judge(self, batch: Batch) -> Judgement:
        return Judgement(Decision.trusting(batch))

    def shared_state(self) -> list[Tensor]:
        # Every rank computes the same loss, so that its parameters must be the same, too.
        return [*self.parameters(), *super().shared_state()]

    def narrowed(self, batch: Batch, decision: Decision) -> Batch:
        return gather_batch(batch)

    def whole(self, batch: Batch) -> Batch:
        return gather_batch(batch)


def gather_batch(batch: Batch) -> Batch:
    """The batch of all ranks' rows, in rank order, on every rank."""
    if batch.first_own is not None or collectives.world_size() == 1:
        return batch
    reports = collectives.exchange(_row_counts(batch))
    sizes, ref_sizes, *column_sizes = (list(counts) for counts in zip(*reports, strict=True))
    start = sum(sizes[: collectives.rank()])

    def gather(rows: Tensor | None, counts: list[int]) -> Tensor | None:
        return None if rows is None else collectives.gather_rows(rows, counts)

    return replace(
        batch,
        embeddings=collectives.gather_rows(batch.embeddings, sizes),
        labels=collectives.gather_rows(batch.labels, sizes),
        indices_tuple=_gather_indices(batch, sizes, ref_sizes, column_sizes),
        ref_emb=gather(batch.ref_emb, ref_sizes),
        ref_labels=gather(batch.ref_labels, ref_sizes),
        sample_weight=gather(batch.sample_weight, sizes),
        sample_ids=gather(batch.sample_ids, sizes),
        synthetic=gather(batch.synthetic, sizes),
        negative_only=gather(batch.negative_only, sizes),
        first_own=start,
    )


def _row_counts(batch: Batch) -> list[int]:
    ref = 0 if batch.ref_emb is None else len(batch.ref_emb)
    return [len(batch), ref, *(len(column) for column in batch.indices_tuple or ())]


def _gather_indices(
    batch: Batch, sizes: list[int], ref_sizes: list[int], column_sizes: list[list[int]]
) -> tuple[Tensor, ...] | None:
    """Pairs and triplets of all ranks, pointing into the gathered rows."""
    if batch.indices_tuple is None:
        return None
    me = collectives.rank()
    columns: list[Tensor] = []
    for group in index_groups(batch.indices_tuple):
        in_batch = batch_columns(group, batch.ref_emb is not None)
        for i, column in enumerate(group):
            shift = sum((sizes if i < in_batch else ref_sizes)[:me])
            counts = column_sizes[len(columns)]
            columns.append(collectives.gather_rows(column + shift, counts))
    return tuple(columns)
