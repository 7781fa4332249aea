"""Wrappers of which every rank holds a part: they decide like a whole one, tie for tie."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import message, run_ranks, run_resumed
from pytorch_metric_learning import losses
from shared_batches import BATCH, CLASSES, SAMPLES, WIDTH, corners, drawn, share
from torch import Tensor

from noisydml import (
    GatheredLoss,
    JudgeFilter,
    KNNDenoiser,
    LabelAudit,
    LossWrapper,
    PRISMFilter,
    PrototypicalMixer,
)
from noisydml.distributed import full_state_dict
from noisydml.memory.index import FaissIndex

STEPS, MORE = 9, 5

pytestmark = pytest.mark.usefixtures("few_held_out")


def knn(loss: Any, **settings: Any) -> KNNDenoiser:
    return KNNDenoiser(loss, memory_size=SAMPLES, **settings)


def prism(loss: Any, **settings: Any) -> PRISMFilter:
    """With a ring of less than two batches, so that entries leave all the time."""
    settings = {"memory_size": 41, "warmup": 2, "window": 3, **settings}
    return PRISMFilter(loss, CLASSES, WIDTH, **settings)


def judged(**settings: Any) -> JudgeFilter:
    return JudgeFilter(pairs(), dataset_size=SAMPLES, k=20, **settings)


def pairs() -> Any:
    return losses.ContrastiveLoss()


# How to make them, and whether samples have ids; "ties" have embeddings of which many are equal.
MAKE: dict[str, tuple[Callable[..., LossWrapper], bool]] = {
    "weighted": (lambda **s: knn(pairs(), **s), True),
    "without ids": (lambda **s: knn(pairs(), embedding_size=WIDTH, **s), False),
    "counted": (lambda **s: knn(pairs(), vote="count", index=FaissIndex(), **s), True),
    "euclidean": (lambda **s: knn(pairs(), k=7, metric="euclidean", **s), True),
    "ties, counted": (lambda **s: knn(pairs(), vote="count", k=6, **s), True),
    "ties, weighted": (lambda **s: knn(pairs(), k=6, **s), False),
    "ties, euclidean": (
        lambda **s: knn(pairs(), vote="count", k=6, metric="euclidean", **s),
        True,
    ),
    "gathered outside": (lambda **s: GatheredLoss(knn(pairs(), k=5, **s)), True),
    "in a mixer": (
        lambda **s: PrototypicalMixer(
            knn(pairs(), k=5, **s), CLASSES, WIDTH, memory_size=SAMPLES, warmup=1, cycles=2, seed=0
        ),
        True,
    ),
    "prism": (lambda **s: prism(pairs(), noise_rate=0.3, **s), True),
    "prism, memory_positive": (
        lambda **s: prism(pairs(), noise_rate=0.3, score="memory_positive", **s),
        False,
    ),
    "judged": (
        lambda **s: judged(start="train", **s),
        True,
    ),
    "prism around knn": (
        lambda **s: prism(knn(pairs(), k=5, **s), noise_rate=0.2, memory_size=7, **s),
        True,
    ),
}


# Where sums over ranks take part, how far rounding leads: expectation maximisation on the 61
# samples multiplies it by ten thousand.
ROUNDED = {"in a mixer": 1e-6, "judged": 0.02}


def make_batch(name: str, step: int) -> dict[str, Any]:
    embeddings, labels, ids = drawn(step, spread=0.7)
    if name.startswith("ties"):  # 16 directions in all, of all labels, and one of each length
        embeddings = torch.nn.functional.pad(corners(ids) + 1, (0, WIDTH - 4))
    batch = {"embeddings": embeddings, "labels": labels}
    return {**batch, "sample_ids": ids} if MAKE[name][1] else batch


def steps(name: str, wrapper: LossWrapper, rank: int, world: int, which: range) -> list[Any]:
    """What the wrapper decides about this rank's rows, and where these are in the batch."""
    decisions = []
    for step in which:
        own = share(step, rank, world)
        batch = {key: rows[own] for key, rows in make_batch(name, step).items()}
        wrapper(**{**batch, "embeddings": batch["embeddings"].requires_grad_()})
        inner = wrapper.loss if isinstance(wrapper, (GatheredLoss, PrototypicalMixer)) else wrapper
        decisions.append({k: v for k, v in vars(inner.decision).items() if v is not None})
    return decisions


def train(rank: int, world: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, (make, _) in MAKE.items():
        wrapper = make(shard=True)
        decisions = steps(name, wrapper, rank, world, range(STEPS))
        alone = copy.deepcopy(wrapper.state_dict()) if rank == 0 else None  # waits for nobody
        result[name] = decisions, full_state_dict(wrapper), alone
    return result


def resume(rank: int, world: int, path: str) -> dict[str, Any]:
    """Load what two ranks have saved, and go on."""
    result: dict[str, Any] = {}
    saved = torch.load(path)
    for name, (make, _) in MAKE.items():
        wrapper = make(shard=True)
        wrapper.load_state_dict(saved[name])
        result[name] = steps(name, wrapper, rank, world, range(STEPS, STEPS + MORE))
    return result


def messages(rank: int, world: int) -> dict[str, Any]:
    """What this rank is told when something goes wrong on rank 1, or on rank 0, alone."""
    told: dict[str, Any] = {}

    def note(name: str, call: Callable[[], object]) -> None:
        told[name] = message(call)

    features = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(SAMPLES) % CLASSES
    made = knn(pairs(), k=5, shard=True)
    parts = knn(pairs(), k=5, shard=True)
    made.refresh(features, labels)
    own = torch.arange(rank, SAMPLES, world)
    parts.refresh(features[own], labels[own], own)
    told["parts"] = copy.deepcopy([full_state_dict(each) for each in (made, parts)])
    bad = features * (float("nan") if rank == 1 else 1)
    note("refresh", lambda: made.refresh(bad, labels))
    told["refreshed"] = copy.deepcopy(full_state_dict(made))
    state = copy.deepcopy(made.state_dict())
    state["reference._extra_state"][1] = 1 - rank
    note("part of another rank", lambda: made.load_state_dict(state))
    note("part in a whole", lambda: knn(pairs(), k=5).load_state_dict(made.state_dict()))
    steps("weighted", made, rank, world, range(1))
    whole = full_state_dict(made)
    if rank == 0:
        made.load_state_dict(whole)
    note("loaded alone", lambda: steps("weighted", made, rank, world, range(1)))
    fresh = knn(pairs(), k=5, shard=True)
    if rank == 0:
        fresh.load_state_dict(whole)
    note("loaded alone at first", lambda: steps("weighted", fresh, rank, world, range(1)))
    fails = False

    def leaf(embeddings: Tensor, labels: Tensor) -> Tensor:
        if fails and rank == 1:
            raise MemoryError("on purpose")
        return embeddings.square().sum(dim=1)

    filtering = prism(knn(leaf, k=5, shard=True), noise_rate=0.3, shard=True)
    steps("weighted", filtering, rank, world, range(4))
    saved = [copy.deepcopy(full_state_dict(filtering))]
    torch.distributed.broadcast_object_list(saved)
    own_part = copy.deepcopy(filtering.state_dict())
    fails = True
    note("failed", lambda: steps("weighted", filtering, rank, world, range(4, 5)))
    fails = False
    note("after it", lambda: steps("weighted", filtering, rank, world, range(5, 6)))
    filtering.load_state_dict(copy.deepcopy(filtering.state_dict()))
    note("own parts of two steps", lambda: steps("weighted", filtering, rank, world, range(5, 6)))
    again = []
    for state in (saved[0], own_part):
        filtering.load_state_dict(state)
        again.append(steps("weighted", filtering, rank, world, range(4, 9))[-1]["score"])
    told["again"] = again
    index = FaissIndex("IVF30,Flat")  # 30 cells cannot be made of the 2 samples of rank 1
    note("index", lambda: untrainable(rank, index))
    told["judges"] = judges(features, labels, own, rank, note)
    return told


def judges(features: Tensor, labels: Tensor, own: Tensor, rank: int, note: Any) -> list[Any]:
    """What a judge of parts says of all samples, or the own part, and what it refuses."""
    features = features + 4 * torch.eye(WIDTH)[labels]
    wrappers = [judged(shard=True) for _ in range(2)]
    wrappers[0].refresh(features, labels)
    wrappers[1].refresh(features[own], labels[own], own)
    states = copy.deepcopy([full_state_dict(each) for each in wrappers])
    bad = labels - 99 * rank
    note("judge's refresh", lambda: wrappers[0].refresh(features, bad))
    note("judge's widths", lambda: wrappers[0].refresh(features[:, rank:], labels))
    index = FaissIndex("IVF30,Flat")
    fails = judged(shard=True, index=index)
    note("judge's index", lambda: fails.refresh(features[:33], labels[:33]))
    batch = make_batch("without ids", 0)
    note("without ids", lambda: wrappers[0](**batch))
    states.append(copy.deepcopy(full_state_dict(wrappers[0])))
    audit = LabelAudit(wrappers[0], SAMPLES)
    steps("judged", wrappers[0], rank, 2, range(1))
    audited = audit.result()  # by this rank alone
    return [*states, audited.score]


def untrainable(rank: int, index: FaissIndex) -> None:
    wrapper = knn(pairs(), k=2, shard=True, index=index)
    ids = torch.cat([torch.arange(0, SAMPLES, 2), torch.tensor([1, 3])])
    generator = torch.Generator().manual_seed(3)
    wrapper.refresh(torch.randn(len(ids), WIDTH, generator=generator), ids % CLASSES, ids)
    steps("weighted", wrapper, rank, 2, range(1))


def together(name: str, by_rank: list[list[Any]], step: int, field: str) -> Tensor:
    """The ranks' values in the order of one process, which has all mixed rows at the end."""
    parts = [decisions[step].get(field) for decisions in by_rank]
    assert all(part is not None for part in parts)
    if parts[0].ndim == 0 or name == "gathered outside":
        for part in parts:
            assert torch.equal(part, parts[0])
        return parts[0]
    if name == "in a mixer" and sum(len(part) for part in parts) > BATCH:
        halves = [part.chunk(2) if len(part) > 0 else (part, part) for part in parts]
        parts = [half[i] for i in range(2) for half in halves]
    return torch.cat(parts)


def assert_same_decisions(name: str, expected: list[Any], by_rank: list[list[Any]]) -> None:
    """To the bit; what has been added up in another order to 1e-6, or as far as that leads."""
    for step, one in enumerate(expected):
        for field, value in one.items():
            found, what = together(name, by_rank, step, field), f"{name}, {step}, {field}"
            if name in ROUNDED and value.is_floating_point():
                near: dict[str, Any] = {"rtol": 1e-5, "atol": ROUNDED[name], "equal_nan": True}
                torch.testing.assert_close(found, value, msg=what, **near)
            else:
                assert torch.equal(found, value), what


@functools.cache
def one_process(name: str) -> tuple[list[Any], dict[str, Any], list[Any]]:
    wrapper = MAKE[name][0]()
    decisions = steps(name, wrapper, 0, 1, range(STEPS))
    state = copy.deepcopy(wrapper.state_dict())
    return decisions, state, steps(name, wrapper, 0, 1, range(STEPS, STEPS + MORE))


def assert_same_state(found: dict[str, Any], expected: dict[str, Any], atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=atol, msg=key)


@pytest.mark.parametrize("name", MAKE)
def test_with_one_process_it_is_the_same(name: str) -> None:
    """Decisions and state, to the bit."""
    decisions, state, _ = one_process(name)
    wrapper = MAKE[name][0](shard=True)
    assert_same_decisions(name, decisions, [steps(name, wrapper, 0, 1, range(STEPS))])
    for found in (wrapper.state_dict(), full_state_dict(wrapper)):
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())


def test_the_batches_try_what_they_should() -> None:
    for name in MAKE:
        decisions, _, more = one_process(name)
        assert not all(decision["keep"].all() for decision in decisions + more), name
    scores = torch.cat([decision["score"] for decision in one_process("ties, counted")[0][4:]])
    assert (scores == 0.5).any()  # which is not below the threshold, but what is next to it


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(train, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, two: list[Any]) -> list[Any]:
    """Going on from what two ranks have saved."""
    states = {name: state for name, (_, state, _) in two[0].items()}
    return run_resumed(resume, 4, tmp_path_factory.mktemp("four"), states)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(messages, 2, tmp_path_factory.mktemp("told"))


@pytest.mark.parametrize("name", MAKE)
class TestRanks:
    pytestmark = pytest.mark.slow

    def test_two_ranks_decide_like_a_whole(self, name: str, two: list[Any]) -> None:
        decisions, state, _ = one_process(name)
        assert_same_decisions(name, decisions, [result[name][0] for result in two])
        assert_same_state(two[0][name][1], state, max(1e-6, ROUNDED.get(name, 0)))
        assert two[1][name][1] == {}

    def test_a_part_holds_its_share(self, name: str, two: list[Any]) -> None:
        whole, part = two[0][name][1:]
        for key, value in part.items():
            if key.endswith(("memory.features", "reference.features")) and "proto" not in key:
                assert len(value) == -(-len(whole[key]) // 2)
                assert torch.equal(value[: len(whole[key][::2])], whole[key][::2])

    def test_what_two_have_saved_goes_on_with_one(self, name: str, two: list[Any]) -> None:
        for settings in ({}, {"shard": True}):
            wrapper = MAKE[name][0](**settings)
            wrapper.load_state_dict(two[0][name][1])
            found = steps(name, wrapper, 0, 1, range(STEPS, STEPS + MORE))
            assert_same_decisions(name, one_process(name)[2], [found])

    def test_and_with_four(self, name: str, four: list[Any]) -> None:
        assert_same_decisions(name, one_process(name)[2], [result[name] for result in four])


class TestRefusals:
    pytestmark = pytest.mark.slow

    def test_refresh_takes_all_samples_or_the_own_part(self, told: list[Any]) -> None:
        whole = knn(pairs(), k=5)
        features = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(3))
        whole.refresh(features, torch.arange(SAMPLES) % CLASSES)
        for state in told[0]["parts"]:
            assert_same_state(state, whole.state_dict())
        assert_same_state(told[0]["refreshed"], whole.state_dict())  # the one refused left it

    def test_a_judge_of_parts_judges_all_samples(self, told: list[Any]) -> None:
        whole = judged()
        features = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(3))
        labels = torch.arange(SAMPLES) % CLASSES
        whole.refresh(features + 4 * torch.eye(WIDTH)[labels], labels)
        for state in told[0]["judges"][:3]:
            assert_same_state(state, whole.state_dict(), ROUNDED["judged"])
        audited = [rank["judges"][3] for rank in told]
        assert audited[0].isfinite().any()
        assert torch.equal(audited[0].nan_to_num(-1), audited[1].nan_to_num(-1))

    @pytest.mark.parametrize(
        ("name", "first", "second"),
        [
            ("refresh", "RuntimeError: rank 1 failed", "ValueError: features must be finite"),
            *[(name, message, message) for name, message in (
                ("part of another rank", "ValueError: reference._extra_state must be that of"),
                ("part in a whole", "ValueError: memory._extra_state must be that of the whole"),
                ("loaded alone", "RuntimeError: a state was loaded on rank 0 and not on all"),
                ("loaded alone at first", "RuntimeError: the part of a memory on rank 1 has seen"),
                ("after it", "RuntimeError: rank 0 is 1 steps ahead of rank 1"),
                ("own parts of two steps", "RuntimeError: the part of a memory on rank 1 has"),
            )],
            ("failed", "no error", "MemoryError: on purpose"),
            ("index", "RuntimeError: rank 1 failed", "ValueError: index factory 'IVF30,Flat'"),
            ("judge's refresh", "RuntimeError: rank 1 failed", "ValueError: labels must not be"),
            *[(name, message, message) for name, message in (
                ("judge's widths", "ValueError: features must be as wide on all ranks, got [8, 7]"),
                ("without ids", "ValueError: sample_ids must be given with shard=True"),
            )],
            ("judge's index", "ValueError: index factory", "ValueError: index factory"),
        ],
    )  # fmt: skip
    def test_both_ranks_are_told(self, name: str, first: str, second: str, told: list[Any]) -> None:
        assert told[0][name].startswith(first)
        assert told[1][name].startswith(second)

    def test_a_whole_state_and_the_own_part_go_on_alike(self, told: list[Any]) -> None:
        for rank in told:
            assert torch.equal(*rank["again"])


def test_what_needs_all_entries_is_refused() -> None:
    for settings in ({"memory_loss": True}, {"score": "pairs"}, {"noise_rate": None}):
        with pytest.raises(ValueError, match=f"shard must be False with {next(iter(settings))}"):
            prism(pairs(), shard=True, **{"noise_rate": 0.3, **settings})


def test_ranks_that_came_later_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrappers = [
        knn(pairs(), shard=True),
        prism(pairs(), noise_rate=0.3, shard=True),
        judged(shard=True),
        PrototypicalMixer(None, CLASSES, WIDTH, memory_size=SAMPLES, shard=True),
    ]
    for wrapper in wrappers:
        before = copy.deepcopy(wrapper.state_dict())
        with monkeypatch.context() as patch:
            patch.setattr("noisydml.memory.dealt._place", lambda shard: (1, 2))
            patch.setattr(wrapper, "_trains", lambda: False)  # there is nobody to agree with
            with pytest.raises(RuntimeError, match=r"after torch.distributed is init"):
                wrapper(**make_batch("weighted", 0))
        for name, value in wrapper.state_dict().items():
            assert torch.equal(value, before[name])
