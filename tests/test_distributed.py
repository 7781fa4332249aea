"""What crosses ranks, where no wrapper's test comes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import run_ranks
from torch import Tensor

from noisydml.distributed import _in_parts, gather_rows


def gather_one_row(rank: int, world: int) -> list[Tensor]:
    """Of all ranks together, with numbers of 8 bytes behind 3 of 4; and a row, turned."""
    size = 1 - rank
    features, ids = torch.ones(size, 3), torch.full((size, 2), 7)
    column = (torch.arange(3.0) + 10 * rank).unsqueeze(0).T
    return [*gather_rows([features, ids], [1, 0]), *gather_rows([column], [3, 3])]


@pytest.mark.slow
def test_a_single_row_may_have_columns_of_any_width(tmp_path: Path) -> None:
    for features, ids, columns in run_ranks(gather_one_row, 2, tmp_path):
        assert features.tolist() == [[1.0, 1.0, 1.0]]
        assert ids.tolist() == [[7, 7]]
        assert columns.squeeze(1).tolist() == [0, 1, 2, 10, 11, 12]


def test_what_others_call_ranks_is_no_part_of_a_memory() -> None:
    """As of a head with low-rank adapters."""
    head = torch.nn.Linear(2, 2)
    head.ranks = 8  # type: ignore[assignment]
    assert not _in_parts(head)
