"""Promise 5: a rank that has fallen behind is named in the next step, on all ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    SAMPLES,
    build,
    chain,
    make_batch,
    naming,
    spy,
    whole_state,
)
from processes import message, run_ranks

from noisydml import LabelAudit, LossWrapper

SHARDED = ("sharded_knn", "sharded_prism", "sharded_mixer", "sharded_judged")
STATEFUL = (
    "running_mean", "prism", "knn", "unsized_knn", "small_loss", "super_loss", "mixer",
    "relabeler(knn)", "ground_truth(prism)", "selected(knn)", "confidence(regularized)", "judged",
)  # fmt: skip
FAILURES: dict[str, Callable[[], Exception]] = {
    "out of memory": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "any error": lambda: RuntimeError("on purpose"),
}

pytestmark = pytest.mark.slow


def drift(rank: int, world: int) -> dict[Any, Any]:
    """What this rank is told after rank 1 has done something else than rank 0."""
    results: dict[Any, Any] = {}
    for case in STATEFUL:
        for name, make in FAILURES.items():
            results[case, name] = after_a_failure(case, rank, make)
        results[case, "eval"] = after_a_step_in_eval(case, rank)
        results[case, "loaded"] = after_loading_on_rank_0(case, rank)
    for case in SHARDED:  # whose state must be loaded on all ranks: tests/wrappers/test_sharded.py
        results[case, "eval"] = after_a_step_in_eval(case, rank)
    results["judged", "reset"] = after_an_epoch_of_one("judged", rank, "reset")
    ends_alone = ("sharded_knn", "sharded_mixer", "sharded_judged", "knn", "mixer", "judged")
    for case in (*ends_alone, "prism(knn)"):
        results[case, "end_epoch"] = after_an_epoch_of_one(case, rank)
    for case in ("confidence(prism)", "ground_truth(confidence(regularized))"):
        results[case, "inner eval"] = after_inner_eval(case, rank)
    for case in CASES:
        for kind in ("sparse", "meta", "failing check"):
            results[case, kind] = refused(case, rank, kind)
        for kind, depth in (("outermost", 0), ("innermost", -1)):
            results[case, kind] = after_a_failure_within(case, rank, depth)
    for case in ("prism", "gathered", "ground_truth(prism)"):
        results[case, "audit"] = after_a_failure_beside_an_audit(case, rank)
    return results


def after_a_failure(case: str, rank: int, make: Callable[[], Exception]) -> list[Any]:
    fails = False

    def sometimes(_: torch.Tensor) -> None:
        if fails:
            raise make()

    torch.manual_seed(0)
    wrapper = CASES[case].make(spy(case, sometimes))
    wrapper(**make_batch(seed=0))
    fails = rank == 1
    skipped = message(lambda: wrapper(**make_batch(seed=1)))
    fails = False
    told = [message(lambda: wrapper(**make_batch(seed=2))) for _ in range(2)]
    wrapper.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    wrapper(**make_batch(seed=2))
    return [skipped, *told, whole_state(wrapper)]


def after_a_failure_within(case: str, rank: int, depth: int) -> list[Any]:
    """One rank stops where the others go on to the next collective, if there is one."""
    wrapper = build(case)
    wrapper(**make_batch(seed=0))
    place = chain(wrapper)[depth]

    def failing(_: Any) -> None:
        raise MemoryError("on purpose")

    if rank == 1:
        place.judge = failing
    skipped = message(lambda: wrapper(**make_batch(seed=1)))
    vars(place).pop("judge", None)
    waited = "parted" in skipped
    told = skipped if waited else message(lambda: wrapper(**make_batch(seed=2)))
    wrapper.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    wrapper(**make_batch(seed=3))
    return [skipped, told, whole_state(wrapper)]


def after_a_failure_beside_an_audit(case: str, rank: int) -> list[Any]:
    fails = False

    def sometimes(_: torch.Tensor) -> None:
        if fails:
            raise MemoryError("on purpose")

    torch.manual_seed(0)
    wrapper = CASES[case].make(spy(case, sometimes))
    audit = LabelAudit(wrapper, SAMPLES)
    wrapper(**make_batch(seed=0))
    fails = rank == 1
    skipped = message(lambda: wrapper(**make_batch(seed=1)))
    fails = False
    told = skipped if rank == 0 else message(lambda: wrapper(**make_batch(seed=2)))
    wrapper.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    wrapper(**make_batch(seed=3))
    return [skipped, told, whole_state(wrapper), dict(audit.state_dict())]


def after_a_step_in_eval(case: str, rank: int) -> list[Any]:
    wrapper = build(case)
    with torch.no_grad():  # validation on one rank alone is no training step
        if rank == 1:
            wrapper.eval()(**make_batch(seed=3))
    wrapper.train()(**make_batch(seed=0))
    if rank == 1:
        with torch.no_grad():
            wrapper.eval()(**make_batch(seed=3))
        wrapper.eval()(**make_batch(seed=1))
        wrapper.train()
    told = message(lambda: wrapper(**make_batch(seed=2)))
    return [told, message(lambda: wrapper(**make_batch(seed=2))), whole_state(wrapper)]


def after_loading_on_rank_0(case: str, rank: int) -> list[Any]:
    source, wrapper = build(case, seed=6), build(case)
    for step in range(3):
        source(**make_batch(seed=step))
    wrapper(**make_batch(seed=4))
    if rank == 0:
        wrapper.load_state_dict(source.state_dict())
    return [message(lambda: wrapper(**make_batch(seed=5))), whole_state(wrapper)]


def after_an_epoch_of_one(case: str, rank: int, method: str = "end_epoch") -> list[Any]:
    wrapper: Any = build(case)
    wrapper(**make_batch(seed=0))
    if rank == 1:
        getattr(wrapper.loss if case.startswith("prism") else wrapper, method)()
    return [message(lambda: wrapper(**make_batch(seed=1)))]


def after_inner_eval(case: str, rank: int) -> list[Any]:
    wrapper: LossWrapper = build(case)
    wrapper(**make_batch(seed=0))
    wrapper.loss.train(rank == 0)
    told = message(lambda: wrapper(**make_batch(seed=1)))
    wrapper.loss.train()
    return [told, message(lambda: wrapper(**make_batch(seed=1))), whole_state(wrapper)]


def refused(case: str, rank: int, kind: str) -> list[Any]:
    wrapper = build(case)
    good = make_batch(seed=0)
    bad = dict(good)
    if kind == "sparse":
        bad["embeddings"] = good["embeddings"].detach().to_sparse()
    elif kind == "meta":
        bad["labels"] = good["labels"].to("meta")

    def failing(_: Any) -> None:
        raise MemoryError("on purpose")

    if kind == "failing check" and rank == 1:
        wrapper.own_checks = failing
    told = message(lambda: wrapper(**(bad if rank == 1 else good)))
    vars(wrapper).pop("own_checks", None)
    wrapper(**good)
    return [told, whole_state(wrapper)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run_ranks(drift, 2, tmp_path_factory.mktemp("drift"))


def of(ranks: list[dict[Any, Any]], kind: str) -> dict[str, tuple[list[Any], list[Any]]]:
    """By case, what the two ranks have returned."""
    first, second = ranks
    return {key[0]: (first[key], second[key]) for key in first if key[1] == kind}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("kind", FAILURES)
def test_a_step_that_failed_on_one_rank_is_named_in_the_next(kind: str, ranks: list[Any]) -> None:
    """And in every step after it, until a state was loaded."""
    for case, (first, second) in of(ranks, kind).items():
        with naming(case):
            assert first[0] == "no error"
            assert "on purpose" in second[0] or "out of memory" in second[0]
            for told in (*first[1:3], *second[1:3]):
                assert told.startswith("RuntimeError: rank 0 is 1 steps ahead of rank 1")
            assert_same(first[3], second[3])


@pytest.mark.parametrize("kind", ["outermost", "innermost"])
def test_a_rank_that_stopped_within_a_step_is_named(kind: str, ranks: list[Any]) -> None:
    """Where another waits for it inside of that step, the two meet at different points."""
    parted = "RuntimeError: the ranks have parted: rank 0 is at the gathering of rows and rank 1 at"
    waited = set()
    for case, (first, second) in of(ranks, kind).items():
        with naming(case):
            assert second[0] == "MemoryError: on purpose"
            if first[0] == "no error":
                ahead = ("RuntimeError: rank 0 is 1 steps ahead of rank 1", "no error")
                assert first[1] == second[1]
                assert first[1].startswith(ahead)
            else:
                waited.add(case)
                assert first[0].startswith(parted)
                assert first[1] == second[1]
            assert_same(first[2], second[2])
    assert {"prism", "knn", "gathered", "confidence(prism)"} & CASES.keys() <= waited


def test_a_step_that_failed_beside_an_audit_is_named(ranks: list[Any]) -> None:
    for case, (first, second) in of(ranks, "audit").items():
        with naming(case):
            assert second[0] == "MemoryError: on purpose"
            assert first[0].startswith("RuntimeError: the ranks have parted: rank 0 is at a label")
            assert first[1] == second[1]
            assert_same(first[2], second[2])
            assert_same(first[3], second[3])


def test_a_step_in_eval_mode_on_one_rank_is_named(ranks: list[Any]) -> None:
    for case, (first, second) in of(ranks, "eval").items():
        with naming(case):
            for told in (first[0], second[0]):
                assert told.startswith("RuntimeError: rank 1 was in eval mode in 1 steps")
            assert first[1] == second[1] == "no error"
            assert_same(first[2], second[2])


def test_an_inner_wrapper_in_another_mode_is_named(ranks: list[Any]) -> None:
    for case, (first, second) in of(ranks, "inner eval").items():
        with naming(case):
            assert first[0] == second[0]
            assert first[0].startswith(
                "RuntimeError: every wrapper of a nest must be in train mode"
            )
            assert first[0].endswith(": 11, 10" if case == "confidence(prism)" else ": 111, 100")
            assert first[1] == second[1] == "no error"
            assert_same(first[2], second[2])


def test_an_epoch_that_one_rank_has_ended_is_named(ranks: list[Any]) -> None:
    for case, both in (of(ranks, "end_epoch") | of(ranks, "reset")).items():
        with naming(case):
            for (told,) in both:
                assert told.startswith("RuntimeError: rank 1 is 1 steps ahead of rank 0")


def test_a_state_loaded_on_rank_0_between_steps_reaches_the_others(ranks: list[Any]) -> None:
    for case, (first, second) in of(ranks, "loaded").items():
        with naming(case):
            assert first[0] == second[0] == "no error"
            assert_same(first[1], second[1])


@pytest.mark.parametrize("kind", ["sparse", "meta", "failing check"])
def test_whatever_fails_on_one_rank_fails_on_all(kind: str, ranks: list[Any]) -> None:
    named = {"sparse": "TypeError: embeddings", "meta": "TypeError: labels"}
    for case, (first, second) in of(ranks, kind).items():
        with naming(case):
            assert first[0].startswith("ValueError: rank 1 refused its batch")
            assert second[0].startswith(named.get(kind, "MemoryError: on purpose"))
            assert_same(first[1], second[1])
