"""Promise 5: ranks agree with one another, and with one process that saw the whole batch."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import ranks
from contract.cases import CASES, naming
from processes import run_ranks
from torch import Tensor

JOBS = [(case, "multi_similarity") for case in CASES] + [
    ("gathered", "soft_triple"),
    ("ground_truth(confidence(gathered))", "soft_triple"),
    ("confidence(gathered)", "cross_batch_memory"),
    ("ground_truth(gathered)", "cross_entropy"),
    ("super_loss_of_pairs", "contrastive"),
    ("ground_truth(super_loss_of_pairs)", "contrastive"),
    ("super_loss", "soft_triple"),
]
IDS = [f"{case}-{leaf}" for case, leaf in JOBS]

pytestmark = pytest.mark.slow


def run(world: int, folder: Path) -> list[dict[Any, Any]]:
    return run_ranks(ranks.run_jobs, world, folder, JOBS)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run(4, tmp_path_factory.mktemp("four"))


def assert_same_decisions(expected: list[Any], by_rank: list[list[Any]]) -> None:
    """Every wrapper of a nesting: the ranks' decisions, put together, are the one process's."""
    for depth, one in enumerate(expected):
        mine = [decisions[depth] for decisions in by_rank]
        for name in ("threshold", "keep", "weight", "score"):
            values = [decision[name] for decision in mine]
            if name != "threshold" and not one["about_all"]:
                values = [put_together(values, one["mixed"])]
            for value in values:
                with naming(f"{name} of wrapper {depth}"):
                    close(value, one[name])


def put_together(parts: list[Tensor | None], mixed: bool) -> Tensor | None:
    """The ranks' values in the order of one process, which has all mixed rows at the end."""
    given = [part for part in parts if part is not None]
    if len(given) < len(parts):
        return None
    if mixed:
        halves = [part.chunk(2) if len(part) > 0 else (part, part) for part in given]
        given = [half[i] for i in range(2) for half in halves]
    return torch.cat(given)


def close(actual: Tensor | None, expected: Tensor | None) -> None:
    """To the rounding of single precision, in which embeddings and proxies are."""
    if expected is None:
        assert actual is None
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.fixture(params=["two", "four"])
def results(request: pytest.FixtureRequest) -> list[dict[Any, Any]]:
    """Of each rank."""
    found: list[dict[Any, Any]] = request.getfixturevalue(request.param)
    return found


@functools.cache
def one_process(case: str, leaf: str) -> dict[str, Any]:
    return ranks.train(case, leaf, 0, 1)


@pytest.mark.parametrize("job", JOBS, ids=IDS)
def test_ranks_decide_like_one_process(job: tuple[str, str], results: list[Any]) -> None:
    """And have its values and gradients where the loss is of all ranks' rows."""
    one = one_process(*job)
    for step in range(ranks.STEPS):
        with naming(f"step {step}"):
            decisions = [result[job]["decisions"][step] for result in results]
            assert_same_decisions(one["decisions"][step], decisions)
    for rank, result in enumerate(results):
        for name in ("values", "gradients") if ranks.gathers_rows(*job) else ():
            with naming(f"{name} on rank {rank}"):
                torch.testing.assert_close(result[job][name], one[name])


@pytest.mark.parametrize("job", JOBS, ids=IDS)
def test_ranks_keep_the_state_of_one_process(job: tuple[str, str], results: list[Any]) -> None:
    """Proxies, running means, memories and counters; equal to the bit on all ranks.

    Without DistributedDataParallel around the loss.
    """
    one, first = one_process(*job)["state"], results[0][job]["state"]
    for rank, result in enumerate(results):
        state = result[job]["state"]
        assert state.keys() == one.keys()
        for name, value in one.items():
            with naming(f"{name} on rank {rank}"):
                torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
                assert torch.equal(state[name], first[name])


def test_mined_tuples_point_into_the_gathered_rows(two: list[Any]) -> None:
    """Each rank mines its own rows; one process gets both ranks' triplets."""
    one = ranks.train("ground_truth(gathered)", "triplet", 0, 1, mined=True)
    for result in two:
        torch.testing.assert_close(result["mined"]["values"], one["values"])
        torch.testing.assert_close(result["mined"]["gradients"], one["gradients"])


def test_what_a_row_has_crosses_at_once(results: list[Any]) -> None:
    """At the start of a step, with the counts, and with the rows; for the inner loss once more."""
    for result in results:
        assert result["meetings"] == {"knn": 3, "knn(gathered)": 5}


def test_a_state_loaded_on_rank_0_reaches_the_others(two: list[Any]) -> None:
    first, second = two[0]["loaded"], two[1]["loaded"]
    assert first[2] == 101
    assert -first[1] > 4  # the mean of 5 has nine tenths of the weight
    for mine, other in zip(first[1:], second[1:], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("bad", ["nan", "type", "label", "other arguments", "other dtype"])
def test_a_bad_batch_on_one_rank_is_refused_on_all(bad: str, two: list[Any]) -> None:
    first, second = (result["refusals"] for result in two)
    if bad.startswith("other"):
        assert first[bad] == second[bad]
        assert "on all ranks or on none" in first[bad]
    else:
        assert "rank 1 refused its batch" in first[bad]
        assert {"nan": "must be finite", "type": "TypeError", "label": "labels must"}[bad] in (
            second[bad]
        )
    assert first[bad + " state"] == second[bad + " state"] == "same"
