"""Which row counts where an id is given several times."""

from __future__ import annotations

import torch
from torch import Tensor


def last_of_equals(ids: Tensor) -> Tensor:
    """(B,) for each id the last position at which it occurs, in O(B log B)."""
    if len(ids) == 0:
        return torch.zeros_like(ids, dtype=torch.int64)
    ordered, order = ids.sort(stable=True)
    position = torch.arange(len(ids), device=ids.device)
    ends = torch.nn.functional.pad(ordered.diff() != 0, (0, 1), value=True)
    # From each place the next end of a run of equal ids: the last of them, as the sort is stable.
    end = torch.where(ends, position, len(ids)).flip(0).cummin(dim=0).values.flip(0)
    return torch.empty_like(order).scatter_(0, order, order.gather(0, end))
