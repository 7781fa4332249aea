"""PrototypicalMixer with a head under torch.distributed; without one it is in tests/contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from titan_ranks import STEPS, main, train

pytestmark = pytest.mark.xdist_group("ranks")


def test_two_ranks_train_like_one_process(tmp_path: Path) -> None:
    mp.spawn(main, args=(2, str(tmp_path)), nprocs=2)
    two = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    one = train(0, 1)
    assert one["draws"][-1] is not None
    assert (one["refined"] != -1).any()
    for result in two:
        torch.testing.assert_close(result["values"], one["values"])
        torch.testing.assert_close(result["parameters"], one["parameters"])
        torch.testing.assert_close(result["means"], one["means"])
        assert torch.equal(result["refined"], one["refined"])
    for step in range(STEPS):
        if one["draws"][step] is not None:
            drawn = torch.cat([result["draws"][step] for result in two])
            torch.testing.assert_close(drawn, one["draws"][step])
