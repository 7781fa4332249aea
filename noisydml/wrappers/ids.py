"""Which samples are in a batch: a data set that also yields positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset


def with_ids(dataset: Any) -> Dataset[Any]:
    """A data set that yields each sample's position, too, for ``sample_ids``.

    Args:
        dataset: with a length and samples by position. A sample may be a tuple or a list, a
            mapping, or a single object.

    Returns:
        The same samples: a tuple or list with the position after its last element, a mapping with
        the position as ``"sample_ids"``, a single object as ``(object, position)``. The usual
        collation makes an int64 tensor of the positions. With a sampler, a ``Subset`` *of what is
        returned* or several workers they are those in ``dataset``. Of a ``ConcatDataset`` it goes
        around the whole, not around each part, which would all count from 0.

    Raises:
        TypeError: if ``dataset`` has no length or no samples by position, as an
            ``IterableDataset`` has not.
        ValueError: when a mapping is read that has ``"sample_ids"`` already.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from noisydml import with_ids
        >>> dataset = TensorDataset(torch.randn(3, 8), torch.tensor([0, 1, 1]))
        >>> for inputs, labels, ids in DataLoader(with_ids(dataset), batch_size=3):
        ...     print(labels, ids)
        tensor([0, 1, 1]) tensor([0, 1, 2])
    """
    by_position = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, IterableDataset) or not by_position:
        raise TypeError(
            "dataset must have a length and samples by position, got "
            f"{type(dataset).__name__}; its samples have no positions to tell them by"
        )
    return _WithIds(dataset)


class _WithIds(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        positions = self._positions(index)
        position = positions if positions.ndim else int(positions)  # of a batch that is fetched
        sample = self.dataset[index]
        if isinstance(sample, Mapping):
            if "sample_ids" in sample:
                raise ValueError("the samples of dataset must not have 'sample_ids' already")
            return {**sample, "sample_ids": position}
        if isinstance(sample, Sequence) and not isinstance(sample, (str, bytes)):
            return (*sample, position)
        return sample, position

    def _positions(self, index: Any) -> Tensor:
        """Which samples are at an index; a tensor of them, unless it is of one."""
        asked = range(*index.indices(len(self))) if isinstance(index, slice) else index
        try:
            positions = torch.as_tensor(asked)
        except (TypeError, ValueError, RuntimeError) as error:
            wanted = "an integer, integers, a mask or a slice"
            raise TypeError(
                f"samples have {wanted} for an index, got {index!r}: {error}"
            ) from error
        if positions.dtype == torch.bool and positions.ndim == 1:
            return positions.nonzero().squeeze(1)
        positions = positions.to(torch.int64)
        return torch.where(positions < 0, positions + len(self), positions)
