"""The decisions of a training run, collected sample by sample."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from audit.ranks import SAMPLES, batch, train
from held_out import few_held_out
from processes import run_ranks
from pytorch_metric_learning import losses
from torch import Tensor

import noisydml
from noisydml import (
    Decision,
    GroundTruthFilter,
    KNNDenoiser,
    LabelAudit,
    LossWrapper,
    RegularizedLoss,
)
from noisydml.audit import training
from noisydml.wrappers.decision import Judgement


def make(decay: float = 0.5) -> tuple[GroundTruthFilter, LabelAudit]:
    wrapper = GroundTruthFilter(losses.ContrastiveLoss(), torch.arange(SAMPLES) % 4 == 0)
    return wrapper, LabelAudit(wrapper, SAMPLES, decay=decay)


def test_trust_is_the_moving_average_of_the_weights() -> None:
    weights = iter([1.0, 0.0, 0.0, 1.0])

    class Judge(GroundTruthFilter):
        def judge(self, batch: Any) -> Any:
            self.is_noisy.fill_(next(weights) == 0)
            return super().judge(batch)

    wrapper = Judge(losses.ContrastiveLoss(), torch.zeros(5, dtype=torch.bool))
    audit = LabelAudit(wrapper, 5, decay=0.75)
    expected = 1.0
    for weight in (None, 0.0, 0.0, 1.0):
        expected = 1.0 if weight is None else 0.75 * expected + 0.25 * weight
        wrapper(torch.randn(2, 3), torch.tensor([8, 9]), sample_ids=torch.tensor([4, 1]))
        assert audit.trust[[4, 1]].tolist() == [expected] * 2
    result = audit.result()
    assert result.score[[0, 2, 3]].isnan().all()
    assert result.given_labels.tolist() == [-1, 9, -1, -1, 8]
    assert audit.judged.tolist() == [0, 4, 0, 0, 4]


def test_the_result_of_a_filter() -> None:
    wrapper, audit = make()
    for step in range(6):
        wrapper(**batch(step))
    result = audit.result()
    judged = audit.judged > 0
    assert judged.sum() > 20
    assert set(result.issues.tolist()) == {i for i in range(SAMPLES) if i % 4 == 0 and judged[i]}
    assert result.suggested_labels is None
    assert result.noise_rate == len(result.issues) / judged.sum()
    assert f"of {judged.sum()} labels" in result.summary()


def test_a_regularizer_around_a_filter_hides_none_of_its_decisions() -> None:
    wrapper, _ = make()
    outermost = RegularizedLoss(wrapper, lambda x: x.square().sum(dim=1), weight=0.1)
    audit = LabelAudit(outermost, SAMPLES)
    outermost(**batch(0))
    assert outermost.decision is wrapper.decision
    ids = batch(0)["sample_ids"]
    assert set(audit.result().issues.tolist()) == {int(i) for i in ids if i % 4 == 0}


def test_suggestions_of_a_wrapper_that_makes_them() -> None:
    """Too few samples for the judge."""
    features, labels = torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3)
    wrapper = KNNDenoiser(losses.ContrastiveLoss(), memory_size=12, k=2)
    wrapper.refresh(features, labels)
    audit = LabelAudit(wrapper, 12, decay=0.0)
    given = labels.clone()
    given[6] = 0
    wrapper(features[:9], given[:9], sample_ids=torch.arange(9))
    (row,) = audit.result().rows()
    assert row["sample_id"] == 6
    assert (row["given_label"], row["suggested_label"], row["support"]) == (0, 2, 1.0)


def test_issues_of_equal_trust_are_ordered_by_the_score() -> None:
    wrapper, audit = make()
    for step in range(6):
        wrapper(**batch(step))
    audit.evidence.copy_(torch.arange(SAMPLES).flip(0).double())
    issues = audit.result().issues.tolist()
    assert issues == sorted(issues, reverse=True)
    assert len(issues) > 4


def test_of_equal_ids_in_a_batch_the_last_counts() -> None:
    wrapper, audit = make()
    ids = torch.tensor([3, 3, 5])
    wrapper(torch.randn(3, 4), torch.tensor([1, 2, 3]), sample_ids=ids)
    assert audit.given[3] == 2
    assert audit.judged[3] == 2


def test_eval_mode_and_detached_audits_collect_nothing() -> None:
    wrapper, audit = make()
    wrapper.eval()
    wrapper(**batch(0))
    assert audit.judged.sum() == 0
    wrapper.train()
    audit.detach()
    wrapper(**batch(0))
    assert audit.judged.sum() == 0
    assert audit.result().issues.tolist() == []
    assert math.isnan(audit.result().noise_rate)
    assert audit.result().summary(0).startswith("No label has been judged: nothing can be said.")


def test_a_resumed_run_ends_in_the_same_result() -> None:
    wrapper, audit = make()
    for step in range(8):
        wrapper(**batch(step))
    first_wrapper, first = make()
    for step in range(3):
        first_wrapper(**batch(step))
    second_wrapper, second = make()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(3, 8):
        second_wrapper(**batch(step))
    for name, value in audit.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_what_nobody_could_judge_is_not_right() -> None:
    """In the first epoch there is no reference, and class 3 is never in it.

    These are too few samples for the judge.
    """
    features, labels = torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3)
    wrapper = KNNDenoiser(losses.ContrastiveLoss(), memory_size=12, k=2)
    audit = LabelAudit(wrapper, 12)
    wrapper(features, labels, sample_ids=torch.arange(12))
    result = audit.result()
    assert torch.equal(result.given_labels, labels)  # seen
    assert result.score.isnan().all()  # and not judged
    assert math.isnan(result.noise_rate)
    wrapper.refresh(features[labels < 3], labels[labels < 3])
    given = labels.clone()
    given[6] = 0
    wrapper(features, given, sample_ids=torch.arange(12))
    result = audit.result()
    assert torch.equal(result.score.isnan(), labels == 3)
    assert torch.equal(audit.judged > 0, labels < 3)
    assert result.issues.tolist() == [6]
    assert result.noise_rate == 1 / 9
    assert torch.equal(result.suggested_labels, labels)
    assert result.summary(0).splitlines() == [
        "1 of 9 labels are most likely wrong (11.1 %).",
        "Labels that have not been judged: 3.",
    ]


def test_a_sample_that_is_not_judged_again_keeps_its_trust() -> None:
    wrapper, audit = make()
    wrapper(**batch(0))
    before = copy.deepcopy(audit.state_dict())
    unable = Unable(losses.ContrastiveLoss())
    second = LabelAudit(unable, SAMPLES)
    second.load_state_dict(before)
    unable(**batch(0))
    for name, value in second.state_dict().items():
        assert torch.equal(value, before[name]), name


class Unable(LossWrapper):
    """Judges nobody."""

    def judge(self, batch: Any) -> Judgement:
        return Judgement(Decision.trusting(batch))


def test_large_labels_stay_apart() -> None:
    wrapper, audit = make()
    labels = 2**62 + torch.arange(12)
    wrapper(**{**batch(0), "labels": labels})
    assert torch.equal(audit.result().given_labels[batch(0)["sample_ids"]], labels)


@pytest.mark.slow
def test_two_ranks_collect_what_one_process_does(tmp_path: Path) -> None:
    expected = train(0, 1)
    for state in run_ranks(train, 2, tmp_path):
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_ids": None}, "sample_ids"),
        ({"sample_ids": torch.full((12,), SAMPLES)}, rf"\[0, {SAMPLES}\), the length of is_noisy"),
    ],
)
def test_calls_without_usable_ids(change: dict[str, Any], message: str) -> None:
    wrapper, audit = make()
    before = copy.deepcopy(audit.state_dict())
    with pytest.raises(ValueError, match=message):
        wrapper(**{**batch(0), **change})
    for name, value in audit.state_dict().items():
        assert torch.equal(before[name], value)


def test_ids_beyond_the_audit() -> None:
    wrapper, _ = make()
    LabelAudit(wrapper, 3)
    with pytest.raises(ValueError, match=r"sample_ids must be in \[0, 3\), dataset_size"):
        wrapper(**batch(0))


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "name"),
    [
        ((losses.ContrastiveLoss(), 5), {}, TypeError, "wrapper"),
        ((make()[0], 0), {}, ValueError, "dataset_size"),
        ((make()[0], 5), {"decay": 1.0}, ValueError, r"decay must be in \[0, 1\), got 1.0"),
        ((make()[0], 5), {"decay": None}, TypeError, "decay"),
    ],
)
def test_impossible_settings(
    arguments: tuple[Any, ...], settings: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        LabelAudit(*arguments, **settings)


def test_half_precision_and_other_integer_types() -> None:
    wrapper, audit = make()
    arguments = batch(0)
    arguments["embeddings"] = arguments["embeddings"].half()
    arguments["labels"] = arguments["labels"].to(torch.int16)
    arguments["sample_ids"] = arguments["sample_ids"].to(torch.uint8)
    wrapper(**arguments)
    assert audit.judged.sum() == 12
    assert math.isfinite(audit.result().noise_rate)


def test_the_neighbors_of_a_training() -> None:
    """Also of samples that were never judged."""
    embeddings = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [0, 0.9], [0.02, 0.9]])
    loss_fn = KNNDenoiser(lambda e, labels: e.sum(1), memory_size=5, k=2, vote="count")
    audit = LabelAudit(loss_fn, dataset_size=6)
    for _ in range(3):
        loss_fn(embeddings[:5], torch.tensor([0, 0, 1, 1, 0]), sample_ids=torch.arange(5))
    issues = audit.result()
    assert issues.neighbors is None
    assert issues.issues.tolist() == [4]
    assert issues.with_neighbors(embeddings, k=3).neighbors.tolist() == [[2, 5, 3]]
    with pytest.raises(ValueError, match="embeddings must have 6 rows, one per sample, got 5"):
        issues.with_neighbors(embeddings[:5], k=3)


def test_the_judge_has_the_last_word_where_there_are_features() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(6).repeat(30)
    embeddings = torch.eye(8)[true] + 0.2 * torch.randn(180, 8, generator=generator)
    given = true.clone()
    given[:36:2] = (true[:36:2] + 1 + torch.arange(18) % 5) % 6
    for wrapper in (
        KNNDenoiser(losses.ContrastiveLoss(), memory_size=200),
        noisydml.JudgeFilter(losses.ContrastiveLoss(), dataset_size=180, start="train"),
    ):
        audit = LabelAudit(wrapper, dataset_size=180)
        for _ in range(2):
            for rows in torch.arange(180).split(60):
                wrapper(embeddings[rows], given[rows], sample_ids=rows)
            if isinstance(wrapper, KNNDenoiser):
                wrapper.end_epoch()
        result = audit.result()
        assert result.issues.sort().values.tolist() == list(range(0, 36, 2))
        assert result.noise_rate == pytest.approx(0.1, abs=0.02)
        assert result.suggested_labels is not None
        assert torch.equal(result.suggested_labels, true)
        assert result.probability is not None


def test_a_pass_without_gradients_is_not_collected() -> None:
    wrapper = KNNDenoiser(losses.ContrastiveLoss(), memory_size=60)
    audit = LabelAudit(wrapper, dataset_size=60)
    ids = torch.arange(60)
    with torch.no_grad():  # a validation before which nobody called eval
        wrapper(torch.randn(60, 4), ids % 3, sample_ids=ids)
    assert not audit.judged.any()
    assert (audit.given == -1).all()


def test_a_refused_state_leaves_the_audit_as_it_was() -> None:
    wrapper = KNNDenoiser(losses.ContrastiveLoss(), memory_size=60)
    audit = LabelAudit(wrapper, dataset_size=60)
    bad = {**audit.state_dict(), "trust": torch.ones(60), "support": torch.ones(61)}
    with pytest.raises(ValueError, match="support must have the shape"):
        audit.load_state_dict(bad)
    assert not audit.trust.any()


def half_wrong(rate: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features of 20 classes of 30, in order; their labels, and which are wrong."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(20).repeat_interleave(30)
    features = torch.randn(20, 32, generator=generator)[truth]
    features = features + 0.7 * torch.randn(600, 32, generator=generator)
    wrong = torch.rand(600, generator=generator) < rate
    other = truth + torch.randint(1, 20, (600,), generator=generator)
    return features, torch.where(wrong, other % 20, truth), wrong


@pytest.mark.parametrize("inside", ["nothing", "KNNDenoiser", "robust"])
def test_what_the_outermost_wrapper_dropped_is_listed(inside: str) -> None:
    """Though one inside it, which never saw these samples, has features of the others."""
    features, labels, wrong = half_wrong(0.3)
    loss: Any = losses.ContrastiveLoss()
    if inside == "KNNDenoiser":
        loss = KNNDenoiser(loss, memory_size=600)
    elif inside == "robust":
        loss = noisydml.robust(loss, dataset_size=600)
    loss_fn = GroundTruthFilter(loss, wrong)
    audit = LabelAudit(loss_fn, 600)
    for _ in range(3):
        for ids in torch.arange(600).split(60):
            loss_fn(features[ids], labels[ids], sample_ids=ids)
    found = audit.result()
    assert found.issues.sort().values.tolist() == wrong.nonzero().squeeze(1).tolist()
    assert not found.score.isnan().any()


@few_held_out()
@pytest.mark.parametrize("name", ["KNNDenoiser", "robust"])
def test_a_detached_audit_stays_as_it_is(name: str) -> None:
    """The wrapper goes on with other data, such as the next fold."""
    features, labels, _ = half_wrong(0.3)
    loss_fn: Any = noisydml.robust(losses.ContrastiveLoss(), dataset_size=300)
    if name == "KNNDenoiser":
        loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=300)
    audit = LabelAudit(loss_fn, 300)

    def train(fold: int) -> None:
        for _ in range(3):
            for ids in torch.arange(300).split(60):
                loss_fn(features[fold::2][ids], labels[fold::2][ids], sample_ids=ids)

    train(0)
    expected = audit.result()
    assert len(expected) > 0
    audit.detach()
    audit.detach()
    if name == "robust":
        loss_fn.reset()
    train(1)
    found = audit.result()
    assert torch.equal(found.issues, expected.issues)
    assert torch.equal(found.score, expected.score)


def test_a_judge_filter_has_asked_the_judge_already() -> None:
    """By the first features, too, which no label has drawn together."""
    features, labels, wrong = half_wrong(0.3)
    weak = features @ torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    loss_fn = noisydml.robust(losses.ContrastiveLoss(), dataset_size=600)
    loss_fn.refresh(features, labels)
    audit = LabelAudit(loss_fn, 600)
    for _ in range(2):
        for ids in torch.randperm(600).split(60):
            loss_fn(weak[ids], labels[ids], sample_ids=ids)
    found = audit.result()
    assert torch.equal(found.probability, loss_fn.probability)
    assert torch.equal(found.issues.sort().values, (loss_fn.probability < 0.5).nonzero()[:, 0])
    assert found.noise_rate == float(loss_fn.noise_rate)
    assert found.suggested_labels is not None
    assert (found.suggested_labels[found.issues] != labels[found.issues]).all()
    alone = noisydml.find_label_issues(weak, labels).issues
    precision = [wrong[issues].double().mean() for issues in (found.issues, alone)]
    assert precision[0] > precision[1] + 0.1


def test_a_weight_above_one_is_no_more_than_trust() -> None:
    class Twice(GroundTruthFilter):
        def judge(self, batch: Any) -> Any:
            judged = super().judge(batch)
            weight = 2 * judged.decision.weight
            return judged._replace(decision=replace(judged.decision, weight=weight))

    wrapper = Twice(losses.ContrastiveLoss(), torch.tensor([False, True]))
    audit = LabelAudit(wrapper, 2)
    wrapper(torch.randn(2, 3), torch.tensor([0, 1]), sample_ids=torch.arange(2))
    assert audit.trust.tolist() == [1.0, 0.0]


def test_the_core_of_trained_features_refutes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    judge = training.judge_labels

    def noted(*arguments: Any, **settings: Any) -> Any:
        asked.append(settings)
        return judge(*arguments, **settings)

    monkeypatch.setattr(training, "judge_labels", noted)
    labels, ids = torch.arange(40) % 2, torch.arange(40)
    wrapper = KNNDenoiser(losses.ContrastiveLoss(), memory_size=40)
    audit = LabelAudit(wrapper, dataset_size=40)
    for _ in range(2):
        wrapper(torch.eye(2)[labels] + 0.1 * torch.rand(40, 2), labels, sample_ids=ids)
    audit.result()
    assert asked[-1]["core_refutes"] is False


def test_a_label_that_was_corrected_is_judged_before_the_pass_is_over() -> None:
    true, ids = torch.arange(6).repeat(30), torch.arange(180)
    embeddings, given = torch.eye(8)[true] + 0.2 * torch.randn(180, 8), true.clone()
    given[7] = 0
    wrapper = KNNDenoiser(losses.ContrastiveLoss(), memory_size=180)
    audit = LabelAudit(wrapper, dataset_size=180)
    for _ in range(2):
        wrapper(embeddings, given, sample_ids=ids)
    assert audit.result().issues.tolist() == [7]
    wrapper(embeddings[:60], true[:60], sample_ids=ids[:60])
    assert torch.equal(audit.result().given_labels, true)
    assert audit.result().issues.tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_cast_of_the_module_that_holds_it_leaves_its_precision(dtype: torch.dtype) -> None:
    loss_fn = GroundTruthFilter(losses.ContrastiveLoss(), torch.arange(8) == 3)
    module = torch.nn.ModuleDict({"loss": loss_fn, "audit": LabelAudit(loss_fn, 8)}).to(dtype)
    labels, ids = torch.arange(8) % 2, torch.arange(8)
    loss_fn(torch.randn(8, 4, requires_grad=True), labels, sample_ids=ids)
    assert module["audit"].result().issues.tolist() == [3]
    assert all(b.dtype in (torch.float64, torch.int64) for b in module["audit"].buffers())
