"""PrototypicalMixer; what it shares with every wrapper is in tests/contract."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from fake_cuda import fake_cuda
from pytorch_metric_learning import losses
from torch import Tensor, nn

from noisydml import (
    ConfidenceWeightedLoss,
    GroundTruthFilter,
    LossWrapper,
    PRISMFilter,
    PrototypicalMixer,
)
from noisydml.functional import (
    class_gaussians,
    clustering_loss,
    floor_variances,
    gaussian_log_density,
)

CLASSES, WIDTH, SAMPLES, EMBEDDING = 4, 6, 32, 3
IDS = torch.arange(SAMPLES)
TRUE = IDS % CLASSES
GIVEN = torch.where(IDS < 6, (TRUE + 1) % CLASSES, TRUE)  # the first six are wrong


class Spy:
    """Remembers what a loss is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.calls.append((embeddings, labels))
        return embeddings.square().sum(dim=1)


def features(seed: int = 0, spread: float = 0.3, ids: Tensor = IDS) -> Tensor:
    centers = 3 * torch.eye(WIDTH)[:CLASSES]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SAMPLES, WIDTH, generator=generator)
    return (centers[TRUE] + spread * noise)[ids].requires_grad_()


def mixer(loss: Any = None, head: nn.Module | None = None, **settings: Any) -> PrototypicalMixer:
    settings = {"memory_size": SAMPLES, "seed": 1, "cycles": 1, "max_retrieved": 5, **settings}
    return PrototypicalMixer(Spy() if loss is None else loss, CLASSES, WIDTH, head, **settings)


def call(loss_fn: LossWrapper, seed: int = 0, ids: Tensor = IDS, **keywords: Any) -> Tensor:
    return loss_fn(features(seed, ids=ids), GIVEN[ids], sample_ids=ids, **keywords)


# What a step does ------------------------------------------------------------------------------


def test_a_step_number_by_number() -> None:
    torch.manual_seed(0)
    head, spy = nn.Linear(WIDTH, EMBEDDING), Spy()
    loss_fn = mixer(spy, head, normalize=False, refinement=False)
    call(loss_fn)
    z = features(1)
    value = loss_fn(z, GIVEN, sample_ids=IDS)

    means, variances, counts = class_gaussians(features(0), GIVEN, CLASSES)
    densities = gaussian_log_density(z.detach(), means, floor_variances(variances, counts, 0.1))
    highest, nearest = densities.max(dim=1)
    decision = loss_fn.decision
    assert torch.equal(decision.suggested_labels, nearest)
    torch.testing.assert_close(decision.score, densities[range(SAMPLES), GIVEN] - highest)
    share = decision.share.unsqueeze(1)
    mixed = share * z + (1 - share) * decision.draws
    embeddings = head(torch.cat([z, mixed]))
    torch.testing.assert_close(spy.calls[-1][0], embeddings)
    assert torch.equal(spy.calls[-1][1], torch.cat([GIVEN, GIVEN]))
    weight = SAMPLES * torch.softmax(highest / WIDTH, dim=0)
    torch.testing.assert_close(decision.weight, weight)
    similarity = (torch.cat([weight, weight]) * embeddings.square().sum(dim=1)).mean()
    expected = similarity + 0.8 * clustering_loss(z, GIVEN, means, counts).mean()
    torch.testing.assert_close(value, expected)
    wanted = [z, *head.parameters()]
    for mine, other in zip(
        torch.autograd.grad(value, wanted, retain_graph=True),
        torch.autograd.grad(expected, wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_the_loss_of_the_paper_is_the_default() -> None:
    loss_fn = PrototypicalMixer(None, CLASSES, WIDTH, memory_size=SAMPLES)
    z = features()
    assert isinstance(loss_fn.loss, losses.SupConLoss)
    expected = losses.SupConLoss(temperature=0.5)(z, GIVEN)
    assert torch.equal(loss_fn(z, GIVEN, sample_ids=IDS), expected)


def test_draws_come_from_the_nearest_prototype() -> None:
    loss_fn = mixer()
    call(loss_fn)
    prototypes = loss_fn.prototypes
    draws = []
    for _ in range(200):
        call(loss_fn, seed=0)
        draws.append(loss_fn.decision.draws)
        loss_fn.counters.set(cycle=1, seen=0)
    drawn, nearest = torch.stack(draws), loss_fn.decision.suggested_labels
    assert torch.equal(nearest[6:], TRUE[6:])
    mean, variance = prototypes.means[nearest], prototypes.variances[nearest]
    deviation = (drawn.mean(dim=0) - mean) / (variance / 200).sqrt()
    assert deviation.abs().max() < 5
    assert 0.9 < (drawn.var(dim=0) / variance).mean() < 1.1


def test_by_directions_no_length_and_no_offset_counts() -> None:
    def added(offset: float, scale: float) -> float:
        loss_fn = mixer(similarity=False, refinement=False)
        for seed in (0, 1):
            value = loss_fn(scale * features(seed) + offset, GIVEN, sample_ids=IDS)
        return value.item()

    assert added(0, 1) == pytest.approx(added(50, 1), rel=1e-4)
    assert added(0, 1) == pytest.approx(added(0, 20), rel=1e-4)


def test_without_a_head_mixed_embeddings_have_the_length_of_their_own() -> None:
    spy = Spy()
    loss_fn = mixer(spy)
    call(loss_fn)
    unit = nn.functional.normalize(features(1))
    loss_fn(unit, GIVEN, sample_ids=IDS)
    torch.testing.assert_close(spy.calls[-1][0].norm(dim=1), torch.ones(2 * SAMPLES))


@pytest.mark.parametrize(
    ("settings", "rows", "terms"),
    [
        ({}, 2, {"loss", "clustering"}),
        ({"similarity": False}, 0, {"clustering"}),
        ({"clustering": 0}, 2, {"loss"}),
        ({"mixing": False}, 1, {"loss", "clustering"}),
        ({"weights": None, "clustering": 0, "mixing": False}, 1, {"loss"}),
    ],
)
def test_the_ablations(settings: dict[str, Any], rows: int, terms: set[str]) -> None:
    spy = Spy()
    loss_fn = mixer(spy, **settings)
    call(loss_fn)
    spy.calls.clear()
    value = call(loss_fn, seed=1)
    assert sum(len(embeddings) for embeddings, _ in spy.calls) == rows * SAMPLES
    expected = torch.zeros(())
    if "loss" in terms:
        embeddings = spy.calls[0][0]
        weight = loss_fn.decision.weight.repeat(rows)
        expected = expected + (weight * embeddings.square().sum(dim=1)).mean()
    if "clustering" in terms:
        means, prototypes = loss_fn.prototypes.means, loss_fn.prototypes
        assert torch.equal(prototypes.counts.sum(), torch.tensor(SAMPLES))
        expected = (
            expected
            + 0.8
            * clustering_loss(
                prototypes_directions(loss_fn, features(1), 0),
                loss_fn.decision.labels,
                prototypes_directions(loss_fn, means, 0),
            ).mean()
        )
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)
    assert (loss_fn.decision.weight == 1).all() == ("weights" in settings)


def prototypes_directions(loss_fn: PrototypicalMixer, rows: Tensor, cycle: int) -> Tensor:
    """As seen from the center of the cycle before, which the second cycle hardly moves."""
    return nn.functional.normalize(rows - loss_fn.prototypes.center)


def test_density_weights_are_the_faithful_ones() -> None:
    loss_fn = mixer(weights="density")
    call(loss_fn)
    call(loss_fn, seed=1)
    assert loss_fn.decision.weight.mean().item() == pytest.approx(1)
    tempered = mixer()
    call(tempered)
    call(tempered, seed=1)
    assert loss_fn.decision.weight.std() > 2 * tempered.decision.weight.std()


# Cycles and refinement -------------------------------------------------------------------------


def test_a_cycle_ends_after_as_many_samples_as_the_memory_holds() -> None:
    loss_fn = mixer()
    for step in range(7):
        call(loss_fn, ids=IDS[:10])
        assert loss_fn.counters["cycle"] == (step + 1) // 4  # 4 x 10 >= 32, and the count is anew
        assert (loss_fn.decision.draws is not None) == (step >= 4)


def test_end_epoch_takes_over() -> None:
    loss_fn = mixer()
    loss_fn.end_epoch()  # nothing has been seen
    assert loss_fn.counters["cycle"] == 0
    for _ in range(5):
        call(loss_fn)
    assert loss_fn.counters["cycle"] == 0
    loss_fn.end_epoch()
    call(loss_fn)
    assert loss_fn.counters["cycle"] == 1
    assert loss_fn.decision.draws is not None


def test_warmup_is_counted_in_cycles() -> None:
    loss_fn = mixer(warmup=3)
    for step in range(5):
        call(loss_fn)
        assert (loss_fn.decision.draws is None) == (step < 3)


def test_wrong_labels_are_refined() -> None:
    spy = Spy()
    loss_fn = mixer(spy, max_retrieved=8)
    call(loss_fn)
    ids, old, new, cycle = loss_fn.refined_labels()
    assert ids.tolist() == list(range(6))
    assert torch.equal(old, GIVEN[:6])
    assert torch.equal(new, TRUE[:6])
    assert cycle.tolist() == [1] * 6
    order = torch.arange(SAMPLES).flip(0)
    call(loss_fn, ids=order)
    assert torch.equal(spy.calls[-1][1][:SAMPLES], TRUE[order])
    assert torch.equal(loss_fn.decision.labels, TRUE[order])
    assert torch.equal(loss_fn.prototypes.memory.labels, GIVEN)  # never lost
    assert (loss_fn.decision.score[order < 6] < -1).all()  # about the label as given
    assert (loss_fn.decision.score[order >= 6] == 0).all()


def test_the_curriculum() -> None:
    loss_fn = mixer(cycles=4, max_retrieved=8, warmup=2)
    retrieved = []
    refine = loss_fn.prototypes.refine

    def spy(k: int, cycle: int, **settings: Any) -> None:
        retrieved.append((cycle, k))
        refine(k, cycle, **settings)

    loss_fn.prototypes.refine = spy  # type: ignore[method-assign]
    for _ in range(7):
        call(loss_fn)
    assert retrieved == [(2, 2), (3, 4), (4, 6), (5, 8), (6, 8), (7, 8)]


def test_a_sample_that_is_not_retrieved_again_has_its_given_label_back() -> None:
    loss_fn = mixer(max_retrieved=8)
    call(loss_fn)
    first = loss_fn.refined_labels()
    moved = features(3).detach()
    moved[0] = 3 * torch.eye(WIDTH)[GIVEN[0]]  # to where its given label says
    loss_fn(moved, GIVEN, sample_ids=IDS)
    assert loss_fn.refined_labels().sample_ids.tolist() == [1, 2, 3, 4, 5]
    assert first.sample_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert loss_fn.refined_labels().cycle.tolist() == [1] * 5  # since when, not when last


def test_without_ids_the_memory_is_a_ring_and_nothing_is_refined() -> None:
    loss_fn = mixer(max_retrieved=8)
    for _ in range(3):
        loss_fn(features(), GIVEN)
    assert loss_fn.counters["cycle"] == 3
    assert len(loss_fn.refined_labels().sample_ids) == 0
    assert torch.equal(loss_fn.decision.labels, GIVEN)
    assert torch.equal(loss_fn.prototypes.counts, torch.bincount(GIVEN))


def test_a_class_never_seen_has_no_prototype() -> None:
    loss_fn = mixer()
    seen = IDS[TRUE < 3][6:]
    for _ in range(2):
        call(loss_fn, ids=seen)
    call(loss_fn, ids=IDS[6:])
    decision, fourth = loss_fn.decision, TRUE[6:] == 3
    assert (decision.suggested_labels[fourth] != 3).all()
    assert (decision.score[fourth] == 0).all()
    assert decision.weight.isfinite().all()


def test_one_sample_of_each_class() -> None:
    loss_fn = mixer(memory_size=CLASSES)
    ids = torch.arange(CLASSES)
    for _ in range(3):
        value = loss_fn(torch.eye(WIDTH)[:CLASSES], ids, sample_ids=ids)
    assert value.isfinite()


# Composition -----------------------------------------------------------------------------------


def mixed_twice(loss_fn: LossWrapper) -> Tensor:
    """A warm-up cycle, and a step that mixes."""
    call(loss_fn)
    value = call(loss_fn, seed=1)
    value.backward()
    return value


def is_noisy() -> Tensor:
    return GIVEN != TRUE


def test_a_filter_outside() -> None:
    spy = Spy()
    inner = mixer(spy, memory_size=SAMPLES)
    loss_fn = GroundTruthFilter(inner, is_noisy())
    for _ in range(3):  # 26 of 32 samples are kept, so two batches to a cycle
        call(loss_fn)
    assert len(spy.calls[-1][0]) == 2 * 26
    assert (inner.prototypes.memory.labels[:6] == -1).all()  # a dropped sample is not remembered
    assert len(inner.decision.weight) == 26


def test_a_filter_inside_never_looks_up_a_synthetic_row() -> None:
    spy = Spy()
    inner = GroundTruthFilter(spy, is_noisy())
    mixed_twice(mixer(inner, nn.Linear(WIDTH, EMBEDDING), refinement=False))
    keep = inner.decision.keep
    assert torch.equal(keep[:SAMPLES], ~is_noisy())
    assert keep[SAMPLES:].all()
    assert len(spy.calls[-1][0]) == 26 + SAMPLES


def prism(loss: Any, width: int = WIDTH, **settings: Any) -> PRISMFilter:
    settings = {"noise_rate": 0.2, "window": 1, "warmup": 1, **settings}
    return PRISMFilter(loss, CLASSES, width, memory_size=40, **settings)


@pytest.mark.parametrize("noise_rate", [0.2, None])
def test_prism_inside_remembers_and_counts_samples_alone(noise_rate: float | None) -> None:
    inner = prism(Spy(), EMBEDDING, noise_rate=noise_rate)
    head = nn.Linear(WIDTH, EMBEDDING)
    loss_fn = mixer(inner, head, refinement=False)
    alone = prism(Spy(), EMBEDDING, noise_rate=noise_rate)
    for seed in range(3):
        call(loss_fn, seed)
        alone(head(features(seed)), GIVEN, sample_ids=IDS)
        assert torch.equal(inner.decision.keep[:SAMPLES], alone.decision.keep)
        assert torch.equal(inner.decision.noise_rate, alone.decision.noise_rate)
        torch.testing.assert_close(inner.decision.threshold, alone.decision.threshold)
    assert len(inner.decision.keep) == 2 * SAMPLES
    assert (inner.memory.sample_ids != -1).all() or inner.memory.total < 40
    for mine, other in zip(inner.memory.buffers(), alone.memory.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


def test_prism_outside() -> None:
    inner = mixer(Spy())
    mixed_twice(prism(inner))
    assert inner.prototypes.memory.filled.any()


def confidence(loss: Any, width: int = WIDTH) -> ConfidenceWeightedLoss:
    torch.manual_seed(0)
    return ConfidenceWeightedLoss(loss, losses.ProxyNCALoss(CLASSES, width), lam=0.1)


def test_confidence_inside_weights_the_mixed_rows_as_well() -> None:
    spy, head = Spy(), nn.Linear(WIDTH, EMBEDDING)
    inner = confidence(spy, EMBEDDING)
    loss_fn = mixer(inner, head, clustering=0)
    value = mixed_twice(loss_fn)
    weight = inner.decision.weight.float() * loss_fn.decision.weight.repeat(2)
    assert weight.shape == (2 * SAMPLES,)
    torch.testing.assert_close(value, (weight * spy.calls[-1][0].square().sum(dim=1)).mean())
    groups = loss_fn.parameter_groups(lr=0.1, proxy_lr=0.2)
    assert [p.shape for p in groups[0]["params"]] == [p.shape for p in head.parameters()]
    assert [p.shape for p in groups[1]["params"]] == [(CLASSES, EMBEDDING)]


def test_confidence_outside_weights_the_clustering_too() -> None:
    spy = Spy()
    inner = mixer(spy, refinement=False, weights=None)
    loss_fn = confidence(inner)
    call(loss_fn)
    prototypes = copy.deepcopy(inner.prototypes)
    z = features(1)
    value = loss_fn(z, GIVEN, sample_ids=IDS)
    weight = loss_fn.decision.weight.float()
    assert (weight < 1).any()
    similarity = (weight.repeat(2) * spy.calls[-1][0].square().sum(dim=1)).mean()
    terms = clustering_loss(
        prototypes.directions(z), GIVEN, prototypes.directions(prototypes.means)
    )
    torch.testing.assert_close(value, similarity + 0.8 * (weight * terms).mean())


def test_cross_batch_memory_never_holds_a_synthetic_row() -> None:
    def memory() -> losses.CrossBatchMemory:
        return losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, 2 * SAMPLES + 8)

    inside, alone = memory(), memory()
    loss_fn = mixer(inside, clustering=0, refinement=False)
    for seed in range(5):
        call(loss_fn, seed)
        alone(features(seed), GIVEN)
        assert torch.equal(inside.embedding_memory, alone.embedding_memory)
        assert torch.equal(inside.label_memory, alone.label_memory)
        assert (inside.queue_idx, inside.has_been_filled) == (
            alone.queue_idx,
            alone.has_been_filled,
        )


def test_pairs_are_repeated_among_the_mixed_rows() -> None:
    seen: list[Any] = []

    class SpyLoss(losses.ContrastiveLoss):
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):  # type: ignore[no-untyped-def]
            seen.append((indices_tuple, ref_emb, ref_labels))
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    head = nn.Linear(WIDTH, EMBEDDING)
    loss_fn = mixer(SpyLoss(), head, refinement=False)
    call(loss_fn)
    pairs = tuple(torch.tensor(column) for column in ([0, 1], [4, 5], [2], [3]))
    call(loss_fn, indices_tuple=pairs)
    assert [c.tolist() for c in seen[-1][0]] == [
        [0, 1, 32, 33], [4, 5, 36, 37], [2, 34], [3, 35],
    ]  # fmt: skip
    reference = features(5)
    call(loss_fn, indices_tuple=pairs, ref_emb=reference, ref_labels=TRUE)
    indices, ref_emb, ref_labels = seen[-1]
    assert [c.tolist() for c in indices] == [[0, 1, 32, 33], [4, 5, 4, 5], [2, 34], [3, 3]]
    torch.testing.assert_close(ref_emb, head(reference))
    assert torch.equal(ref_labels, TRUE)
    call(loss_fn, ref_emb=reference)  # labelled like the batch, as in PML
    assert torch.equal(seen[-1][2], GIVEN)


def test_another_mixer_inside_is_refused() -> None:
    with pytest.raises(TypeError, match="another PrototypicalMixer"):
        mixer(mixer())
    with pytest.raises(TypeError, match="another PrototypicalMixer"):
        mixer(GroundTruthFilter(mixer(), is_noisy()))


# The head --------------------------------------------------------------------------------------


def batch_norm_head() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, EMBEDDING), nn.BatchNorm1d(EMBEDDING), nn.Dropout(0.5))


def test_in_eval_mode_the_head_is_all() -> None:
    head = batch_norm_head()
    loss_fn = mixer(losses.ContrastiveLoss(), head)
    call(loss_fn)
    loss_fn.eval()
    before = copy.deepcopy(loss_fn.state_dict())
    z = features(1)
    assert torch.equal(loss_fn(z, GIVEN), losses.ContrastiveLoss()(head(z), GIVEN))
    torch.testing.assert_close(dict(loss_fn.state_dict()), dict(before), rtol=0, atol=0)


def test_asking_for_the_width_leaves_the_head_as_it_was() -> None:
    head = batch_norm_head()
    loss_fn = mixer(confidence(Spy(), EMBEDDING), head)
    state = copy.deepcopy(head.state_dict())
    random = torch.get_rng_state()
    head[2].eval()
    with pytest.raises(ValueError, match="labels"):
        loss_fn(features(), GIVEN + 9, sample_ids=IDS)
    torch.testing.assert_close(dict(head.state_dict()), dict(state), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in head] == [True, True, False]


def test_the_wrappers_inside_check_the_width_of_the_embeddings() -> None:
    loss_fn = mixer(confidence(Spy(), EMBEDDING + 1), nn.Linear(WIDTH, EMBEDDING))
    with pytest.raises(ValueError, match=r"as wide as the proxies .* 4, got 3"):
        call(loss_fn)


def test_an_empty_batch_with_a_head() -> None:
    head = batch_norm_head()
    loss_fn = mixer(losses.ContrastiveLoss(), head)
    value = loss_fn(torch.empty(0, WIDTH, requires_grad=True), GIVEN[:0], sample_ids=IDS[:0])
    value.backward()
    assert value == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_with_a_head(dtype: torch.dtype) -> None:
    loss_fn = mixer(losses.SupConLoss(), nn.Linear(WIDTH, EMBEDDING))
    for seed in range(2):
        with torch.autocast("cpu", dtype=dtype):
            value = call(loss_fn, seed)
    value.backward()
    assert value.isfinite()
    assert loss_fn.head.weight.grad.abs().sum() > 0


def test_a_head_of_the_wrong_shape() -> None:
    loss_fn = mixer(losses.ContrastiveLoss(), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"head must return 32 embeddings, .* \(192,\)"):
        call(loss_fn)


# Promises while mixing -------------------------------------------------------------------------


def trained(loss_fn: LossWrapper, steps: range) -> list[Tensor]:
    values = []
    for step in steps:
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(step))
        values.append(call(loss_fn, step, ids=order[:20]).detach())
    return values


def head_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(WIDTH, EMBEDDING)


@pytest.mark.parametrize("stop", range(1, 8))
def test_resumed_to_the_bit_wherever_it_stops(stop: int) -> None:
    settings: dict[str, Any] = {"cycles": 3, "seed": None}
    whole = mixer(losses.SupConLoss(), head_of(0), **settings)
    expected = trained(whole, range(9))
    first = mixer(losses.SupConLoss(), head_of(0), **settings)
    got = trained(first, range(stop))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)  # neither the seed nor the generator is what it was
    second = mixer(losses.SupConLoss(), head_of(5), **settings)
    second.load_state_dict(torch.load(file, weights_only=True))
    torch.rand(17)
    got += trained(second, range(stop, 9))
    assert torch.equal(torch.stack(got), torch.stack(expected))
    for mine, other in zip(whole.buffers(), second.buffers(), strict=True):
        assert torch.equal(mine, other)


def test_nobody_elses_random_numbers_are_used() -> None:
    loss_fn = mixer()
    call(loss_fn)
    before = torch.get_rng_state()
    call(loss_fn, 1)
    assert loss_fn.decision.draws is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_and_seeds_differ() -> None:
    def draws(seed: int) -> list[Tensor]:
        loss_fn = mixer(seed=seed)
        call(loss_fn)
        loss_fn.counters.set(explicit=1)  # the same prototypes in both steps
        found = []
        for _ in range(2):
            call(loss_fn, 1)
            found.append(loss_fn.decision.draws)
        return found

    first, second = draws(0)
    assert not torch.equal(first, second)
    assert torch.equal(draws(0)[1], second)
    assert not torch.equal(draws(1)[0], first)


def test_a_loss_that_raises_while_mixing_leaves_the_state() -> None:
    fails = False

    def sometimes(embeddings: Tensor, labels: Tensor) -> Tensor:
        if fails:
            raise RuntimeError("on purpose")
        return embeddings.square().sum(dim=1)

    loss_fn = mixer(sometimes)
    call(loss_fn)
    before = copy.deepcopy(loss_fn.state_dict())
    fails = True
    with pytest.raises(RuntimeError, match="on purpose"):
        call(loss_fn, 1)
    torch.testing.assert_close(dict(loss_fn.state_dict()), dict(before), rtol=0, atol=0)
    fails = False
    twin = mixer(sometimes)
    call(twin)
    assert torch.equal(call(loss_fn, 1), call(twin, 1))


def test_no_gradient_through_draws_weights_and_prototypes() -> None:
    loss_fn = mixer(losses.SupConLoss())
    mixed_twice(loss_fn)
    decision = loss_fn.decision
    for name, value in vars(decision).items():
        assert value is None or not value.requires_grad, name
    assert not any(buffer.requires_grad for buffer in loss_fn.buffers())


def test_half_precision_never_reaches_the_densities() -> None:
    loss_fn = mixer(losses.SupConLoss())
    call(loss_fn)
    loss_fn.half()
    assert loss_fn.prototypes.means.dtype == torch.float16
    loss_fn(features(1).half(), GIVEN, sample_ids=IDS).backward()
    assert loss_fn.decision.weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision(dtype: torch.dtype) -> None:
    loss_fn = mixer(losses.SupConLoss())
    for seed in range(3):
        z = features(seed).detach().to(dtype).requires_grad_()
        value = loss_fn(z, GIVEN, sample_ids=IDS)
        value.backward()
        assert value.isfinite()
        assert z.grad.isfinite().all()
    assert torch.finfo(loss_fn.decision.weight.dtype).bits >= 32


def moved(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
        for name, parameter in part._parameters.items():
            part._parameters[name] = nn.Parameter(parameter.detach().to(device))


@pytest.mark.parametrize("head", [False, True])
def test_steps_and_cycles_never_ask_the_host(head: bool) -> None:
    with fake_cuda() as device:
        module = nn.Linear(WIDTH, EMBEDDING) if head else None
        loss_fn = mixer(Spy(), module, validate_args=False)
        moved(loss_fn, device)
        arguments = {
            "embeddings": torch.randn(SAMPLES, WIDTH, device=device),
            "labels": torch.zeros(SAMPLES, dtype=torch.long, device=device),
            "sample_ids": torch.arange(SAMPLES, device=device),
        }
        for _ in range(3):  # a cycle ends in each of them
            value = loss_fn(**arguments)
        assert value.device.type == "cuda"
        assert loss_fn.decision.draws.device.type == "cuda"


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"weights": "tempring"}, ValueError, "weights must be one of"),
        ({"warmup": 0}, ValueError, "warmup must be at least 1"),
        ({"warmup": 1.5}, TypeError, "warmup must be an integer"),
        ({"cycles": 0}, ValueError, "cycles must be at least 1"),
        ({"max_retrieved": -1}, ValueError, "max_retrieved must be at least 0"),
        ({"clustering": -0.1}, ValueError, "clustering must be a finite number of 0 or more"),
        ({"clustering": "0.8"}, TypeError, "clustering must be a number"),
        ({"temperature": 0}, ValueError, "temperature must be a finite"),
        ({"variance_floor": 0}, ValueError, "variance_floor must be a finite"),
        ({"alpha": 0}, ValueError, "alpha must be a finite"),
        ({"beta": -2}, ValueError, "beta must be a finite"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"memory_size": 0}, ValueError, "memory_size must be at least 1"),
        ({"head": lambda z: z}, TypeError, "head must be a torch.nn.Module or None"),
        ({"loss": losses.ProxyAnchorLoss(4, 6)}, TypeError, "ProxyAnchorLoss cannot be weighted"),
        ({"loss": losses.ContrastiveLoss}, TypeError, "loss must be a loss, got the class"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        mixer(settings.pop("loss", None), settings.pop("head", None), **settings)


def test_without_weights_a_loss_need_not_be_weightable() -> None:
    loss_fn = mixer(losses.ProxyAnchorLoss(CLASSES, WIDTH), weights=None)
    assert mixed_twice(loss_fn).isfinite()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.ones(SAMPLES, 5)}, r"as wide as feature_size, 6, got 5"),
        ({"labels": GIVEN + 1}, r"labels must be in \[0, 4\), num_classes of PrototypicalMixer"),
        ({"sample_ids": IDS + 1}, r"sample_ids must be in \[0, 32\), memory_size of Prototypical"),
        ({"sample_ids": IDS - 1}, r"sample_ids must not be negative"),
    ],
)
def test_bad_calls_change_nothing(arguments: dict[str, Any], message: str) -> None:
    loss_fn = mixer()
    call(loss_fn)
    before = copy.deepcopy(loss_fn.state_dict())
    good = {"embeddings": features(1), "labels": GIVEN, "sample_ids": IDS}
    with pytest.raises(ValueError, match=message):
        loss_fn(**{**good, **arguments})
    torch.testing.assert_close(dict(loss_fn.state_dict()), dict(before), rtol=0, atol=0)
