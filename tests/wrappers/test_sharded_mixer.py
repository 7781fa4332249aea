"""PrototypicalMixer with a memory in parts: it mixes and relabels like one with a whole memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import message, run_ranks, run_resumed
from pytorch_metric_learning import losses
from shared_batches import CLASSES, SAMPLES, WIDTH, corners, drawn, share
from torch import Tensor

from noisydml import GatheredLoss, KNNDenoiser, PrototypicalMixer, distributed
from noisydml.distributed import full_state_dict
from noisydml.memory import FeatureMemory, Prototypes

STEPS, MORE = 11, 6  # a cycle is over, and the next one has yet to begin, after 3, 6, 9, 12 steps


def mixer(loss: Any = None, **settings: Any) -> PrototypicalMixer:
    """Around a loss of the rows of all ranks, which then have its value."""
    loss = GatheredLoss(losses.SupConLoss(temperature=0.5)) if loss is None else loss
    settings = {"memory_size": SAMPLES, "cycles": 2, "max_retrieved": 9, "seed": 3, **settings}
    return PrototypicalMixer(loss, settings.pop("num_classes", CLASSES), WIDTH, **settings)


def around_knn(**settings: Any) -> PrototypicalMixer:
    inner = KNNDenoiser(GatheredLoss(losses.ContrastiveLoss()), memory_size=2 * SAMPLES, k=5)
    return mixer(inner, **settings)


MAKE: dict[str, Callable[..., PrototypicalMixer]] = {
    "directions": mixer,
    "as printed": lambda **s: mixer(normalize=False, weights="density", **s),
    "without ids": mixer,
    "ties": lambda **s: mixer(max_retrieved=15, **s),
    "ties, as printed": lambda **s: mixer(normalize=False, max_retrieved=15, **s),
    "end_epoch": lambda **s: mixer(warmup=2, **s),
    "classes of one rank": mixer,
    "one class": lambda **s: mixer(num_classes=1, **s),
    "few samples": lambda **s: mixer(memory_size=7, max_retrieved=50, **s),
    "all retrieved": lambda **s: mixer(max_retrieved=99, cycles=1, **s),
    "around knn": around_knn,
}


def make_batch(name: str, step: int) -> dict[str, Any]:
    embeddings, labels, ids = drawn(step, spread=0.4)
    if name.startswith("ties"):  # the corners of a cube, of all labels
        embeddings = torch.nn.functional.pad(corners(ids), (0, WIDTH - 4), value=1.0)
    if name == "classes of one rank":  # 0, 1 and 2 of rank 0, 3 and 4 of rank 1, of two
        labels = torch.where(ids % 2 == 0, ids // 2 % 3, 3 + ids // 2 % 2)
    if name == "few samples":
        ids = ids % 7
    batch = {"embeddings": embeddings, "labels": labels % (1 if name == "one class" else CLASSES)}
    return batch if name == "without ids" else {**batch, "sample_ids": ids}


def steps(name: str, wrapper: PrototypicalMixer, rank: int, world: int, which: range) -> list[Any]:
    """The value, and what is decided about this rank's rows; in every third step who is refined."""
    found = []
    for step in which:
        own = share(step, rank, world)
        batch = {key: rows[own] for key, rows in make_batch(name, step).items()}
        value = wrapper(**{**batch, "embeddings": batch["embeddings"].requires_grad_()})
        result = {k: v for k, v in vars(wrapper.decision).items() if v is not None}
        if step % 3 == 2:
            if name == "end_epoch":
                for _ in range(1 + step % 2):
                    wrapper.end_epoch()
            if step % 2 == 0:
                result |= {f"refined {k}": v for k, v in wrapper.refined_labels()._asdict().items()}
        found.append({**result, "all value": value.detach()})
    return found


def train(rank: int, world: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, make in MAKE.items():
        wrapper = make(shard=True)
        found = steps(name, wrapper, rank, world, range(STEPS))
        alone = copy.deepcopy(wrapper.state_dict()) if rank == 0 else None  # waits for nobody
        result[name] = found, copy.deepcopy(full_state_dict(wrapper)), alone
        steps(name, wrapper, rank, world, range(STEPS, STEPS + 1))  # a cycle is due
        result[name] += (copy.deepcopy(wrapper.state_dict()), full_state_dict(wrapper))
    return result


def resume(rank: int, world: int, path: str) -> dict[str, Any]:
    """Load what two ranks or one process have saved, and go on."""
    result: dict[str, Any] = {}
    for name, state in torch.load(path).items():
        wrapper = MAKE[name](shard=True)
        wrapper.load_state_dict(state)
        result[name] = steps(name, wrapper, rank, world, range(STEPS, STEPS + MORE))
    return result


def of_all_ranks(by_rank: list[list[Any]], step: int, field: str) -> Tensor:
    parts: list[Tensor] = [found[step][field] for found in by_rank]
    if parts[0].ndim == 0 or field.startswith(("all", "refined")):
        for part in parts:
            assert torch.equal(part, parts[0]), field
        return parts[0]
    return torch.cat(parts)


def assert_alike(expected: list[Any], by_rank: list[list[Any]]) -> None:
    """Labels to the bit; what follows from sums to rounding."""
    for step, one in enumerate(expected):
        for found in by_rank:
            assert found[step].keys() == one.keys()
        for field, value in one.items():
            found_value, what = of_all_ranks(by_rank, step, field), f"step {step}, {field}"
            if value.is_floating_point():
                close(found_value, value, what)
            else:
                assert torch.equal(found_value, value), what


def close(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-5, msg=lambda text: f"{what}: {text}"
    )


def assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        close(found[key], value, key)


def one_process(name: str) -> tuple[list[Any], dict[str, Any], list[Any]]:
    wrapper = MAKE[name]()
    found = steps(name, wrapper, 0, 1, range(STEPS))
    state = copy.deepcopy(wrapper.state_dict())
    return found, state, steps(name, wrapper, 0, 1, range(STEPS, STEPS + MORE))


@pytest.mark.parametrize("name", MAKE)
def test_with_one_process_it_is_the_same(name: str) -> None:
    """To the bit."""
    expected, state, _ = one_process(name)
    wrapper = MAKE[name](shard=True)
    found = steps(name, wrapper, 0, 1, range(STEPS))
    for mine, other in zip(found, expected, strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], value) for key, value in other.items())
    for kept in (wrapper.state_dict(), full_state_dict(wrapper)):
        assert kept.keys() == state.keys()
        assert all(torch.equal(kept[key], value) for key, value in state.items())


def test_the_batches_try_what_they_should() -> None:
    refined = {name: one_process(name)[1]["prototypes.refined"] for name in MAKE}
    nobody = {"without ids", "one class"}
    assert {name for name, labels in refined.items() if (labels < 0).all()} == nobody
    some = refined["directions"]
    assert (some >= 0).any()
    assert (some < 0).any()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(train, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, two: list[Any]) -> list[Any]:
    """Going on from what two ranks have saved."""
    states = {name: found[1] for name, found in two[0].items()}
    return run_resumed(resume, 4, tmp_path_factory.mktemp("four"), states)


@pytest.fixture(scope="module")
def two_after_one(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Going on from what one process has saved."""
    states = {name: one_process(name)[1] for name in MAKE}
    return run_resumed(resume, 2, tmp_path_factory.mktemp("two_after_one"), states)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
class TestRanks:
    def test_two_ranks_are_like_a_whole(self, name: str, two: list[Any]) -> None:
        expected, state, _ = one_process(name)
        assert_alike(expected, [result[name][0] for result in two])
        assert_same_state(two[0][name][1], state)
        assert two[1][name][1] == {}

    def test_a_cycle_that_is_over_has_begun_in_the_whole_state(
        self, name: str, two: list[Any]
    ) -> None:
        wrapper = MAKE[name]()
        steps(name, wrapper, 0, 1, range(STEPS + 1))
        assert_same_state(two[0][name][4], wrapper.state_dict())

    def test_a_part_holds_its_share(self, name: str, two: list[Any]) -> None:
        whole, part = two[0][name][1:3]
        features = part["prototypes.memory.features"]
        size = len(whole["prototypes.memory.features"])
        assert len(features) == -(-size // 2)
        assert torch.equal(features, whole["prototypes.memory.features"][::2])
        for key in ("means", "variances", "counts", "refined", "refined_in"):
            first, second = (rank[name][3][f"prototypes.{key}"] for rank in two)
            assert torch.equal(first, second)

    def test_what_two_have_saved_goes_on_with_one(self, name: str, two: list[Any]) -> None:
        for settings in ({}, {"shard": True}):
            wrapper = MAKE[name](**settings)
            wrapper.load_state_dict(two[0][name][1])
            found = steps(name, wrapper, 0, 1, range(STEPS, STEPS + MORE))
            assert_alike(one_process(name)[2], [found])

    def test_and_with_four(self, name: str, four: list[Any]) -> None:
        assert_alike(one_process(name)[2], [result[name] for result in four])

    def test_what_one_has_saved_goes_on_with_two(self, name: str, two_after_one: list[Any]) -> None:
        assert_alike(one_process(name)[2], [result[name] for result in two_after_one])


def messages(rank: int, world: int) -> dict[str, Any]:
    """What this rank is told when something goes wrong on one rank alone, and how both go on."""
    told: dict[str, Any] = {}
    fails = False

    def leaf(embeddings: Tensor, labels: Tensor) -> Tensor:
        if fails and rank == 1:
            raise MemoryError("on purpose")
        return embeddings.square().sum(dim=1)

    def note(name: str, call: Callable[[], object]) -> None:
        told[name] = message(call)

    def go_on(wrapper: PrototypicalMixer, step: int) -> list[Any]:
        return steps("directions", wrapper, rank, world, range(step, step + 1))

    made = mixer(leaf, shard=True)
    steps("directions", made, rank, world, range(5))
    own_part = copy.deepcopy(made.state_dict())
    fails = True  # in the step that ends a cycle
    note("failed", lambda: go_on(made, 5))
    fails = False
    note("after it", lambda: go_on(made, 6))
    made.load_state_dict(own_part)
    steps("directions", made, rank, world, range(5, 6))
    estimate = made.prototypes.estimate

    def failing() -> None:
        if rank == 1:
            raise MemoryError("on purpose")
        estimate()

    made.prototypes.estimate = failing  # type: ignore[method-assign]
    note("beginning", lambda: go_on(made, 6))
    del made.prototypes.estimate
    if rank == 1:
        note("after the beginning", lambda: go_on(made, 6))
    if rank == 0:
        note("refined_labels", made.refined_labels)
    else:
        note("refined_labels", lambda: go_on(made, 6))
    told["went on"] = steps("directions", made, rank, world, range(6, 12))
    told["state"] = copy.deepcopy(full_state_dict(made))
    if rank == 1:
        made.end_epoch()
    note("end_epoch", lambda: go_on(made, 12))
    loaded = mixer(leaf, shard=True)
    if rank == 0:
        loaded.load_state_dict(told["state"])
    note("loaded alone", lambda: go_on(loaded, 12))
    note("refined_labels of two steps", loaded.refined_labels)
    return told


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(messages, 2, tmp_path_factory.mktemp("told"))


@pytest.mark.slow
class TestRanksThatPart:
    @pytest.mark.parametrize(
        ("name", "first", "second"),
        [
            ("failed", "no error", "MemoryError: on purpose"),
            ("after it", *2 * ("RuntimeError: rank 0 is 1 steps ahead of rank 1",)),
            ("beginning", "RuntimeError: the ranks have parted: rank 0 is at a part of a memory",
             "MemoryError: on purpose"),
            ("after the beginning", None, "RuntimeError: the ranks have parted: rank 0 is at a p"),
            ("refined_labels", *2 * ("RuntimeError: the ranks have parted: rank 0 is at a part",)),
            ("end_epoch", *2 * ("RuntimeError: rank 1 is 1 steps ahead of rank 0",)),
            ("loaded alone", *2 * ("RuntimeError: the part of a memory on rank 1 has seen",)),
            ("refined_labels of two steps", *2 * ("RuntimeError: the part of a memory on rank 1",)),
        ],
    )  # fmt: skip
    def test_both_are_told(self, name: str, first: str | None, second: str, told: Any) -> None:
        if first is not None:
            assert told[0][name].startswith(first)
        assert told[1][name].startswith(second)

    def test_and_go_on_as_if_nothing_had_been(self, told: list[Any]) -> None:
        def leaf(embeddings: Tensor, labels: Tensor) -> Tensor:
            return embeddings.square().sum(dim=1)

        wrapper = mixer(leaf)
        steps("directions", wrapper, 0, 1, range(6))
        expected = steps("directions", wrapper, 0, 1, range(6, 12))
        for each in (expected, *(rank["went on"] for rank in told)):
            for step in each:
                del step["all value"]  # of own rows
        assert_alike(expected, [rank["went on"] for rank in told])
        assert_same_state(told[0]["state"], wrapper.state_dict())


def far_from_zero(rank: int, world: int) -> list[Tensor]:
    """Prototypes of features whose mean is 10,000 times their spread."""
    prototypes = Prototypes(3, WIDTH, 200, shard=True)
    generator = torch.Generator().manual_seed(0)
    features = 1e4 + torch.randn(200, WIDTH, generator=generator)
    prototypes.remember(features, torch.arange(200) % 3, torch.arange(200))
    prototypes.estimate()
    return [prototypes.means, prototypes.variances, prototypes.counts]


@pytest.mark.slow
def test_sums_over_ranks_keep_their_digits(tmp_path_factory: pytest.TempPathFactory) -> None:
    expected = far_from_zero(0, 1)
    for found in run_ranks(far_from_zero, 3, tmp_path_factory.mktemp("three")):
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)


def sent(rank: int, world: int) -> list[dict[str, int]]:
    """Bytes that this rank hands to collectives in the steps that begin a cycle and in others."""
    counted = 0

    def counting(name: str, which: int) -> None:
        collective = getattr(torch.distributed, name)

        def call(*arguments: Any) -> Any:
            nonlocal counted
            counted += arguments[which].numel() * arguments[which].element_size()
            return collective(*arguments)

        setattr(distributed.dist, name, call)

    for name, which in (("all_gather", 1), ("all_to_all_single", 1), ("all_reduce", 0)):
        counting(name, which)
    found = []
    for settings in ({}, {"shard": True}):
        wrapper = mixer(lambda embeddings, labels: embeddings.square().sum(dim=1), **settings)
        for step in range(7):  # the seventh begins a cycle
            before = counted
            steps("directions", wrapper, rank, world, range(step, step + 1))
            if step == 5:
                found.append(counted - before)
        found.append(counted - before)
    return [{"whole": found[i], "parts": found[i + 2]} for i in range(2)]


@pytest.mark.slow
def test_what_a_cycle_sends(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By the formula of docs/scale.md; other steps send what they do with a whole memory."""
    rows = max(share(6, rank, 3).stop - share(6, rank, 3).start for rank in range(3))
    k = 9
    cycle = 4 * 64 + CLASSES * (16 * WIDTH + 8) + 20 * k * (CLASSES + math.ceil(CLASSES / 3))
    for other, begins in run_ranks(sent, 3, tmp_path_factory.mktemp("sent")):
        assert other["parts"] == other["whole"]
        assert begins["whole"] == 2 * 64 + rows * (4 * WIDTH + 16)
        assert begins["parts"] == begins["whole"] + cycle


def test_one_rank_may_end_an_epoch_and_save_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are without a collective: there is no process group here."""
    monkeypatch.setattr("noisydml.memory.dealt._place", lambda shard: (1, 2) if shard else (0, 1))
    wrapper = mixer(lambda embeddings, labels: embeddings.square().sum(dim=1), shard=True)
    assert isinstance(wrapper.prototypes.memory, FeatureMemory)
    for step in range(3):
        wrapper(**make_batch("directions", step))
    wrapper.end_epoch()
    assert wrapper.state_dict()["counters.cycle"] == 0
