"""RegularizedLoss against Eq. 4 of ProcSim written out, in every place of a nesting."""

from __future__ import annotations

from typing import Any

import literal
import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, regularizers
from torch import nn

import noisydml
from noisydml import (
    ConfidenceWeightedLoss,
    GroundTruthFilter,
    LanguageGuidance,
    RegularizedLoss,
    Regularizer,
    per_sample_loss,
)
from noisydml.pml.batch import Batch

CLASSES, WIDTH, SAMPLES, SIZE = 4, 6, 40, 16


def table(parts: int = 3) -> torch.Tensor:
    return torch.randn(SAMPLES, parts, 5, generator=torch.Generator().manual_seed(1)).double()


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randperm(SAMPLES, generator=generator)[:SIZE]
    embeddings = torch.randn(SIZE, WIDTH, generator=generator).double().requires_grad_()
    return {"embeddings": embeddings, "labels": ids % CLASSES, "sample_ids": ids}


def make(loss: Any = None, weight: float = 0.5, **settings: Any) -> RegularizedLoss:
    guidance = LanguageGuidance(table(), by="sample_ids")
    return RegularizedLoss(loss or losses.MultiSimilarityLoss(), guidance, weight, **settings)


def weighted(loss: Any) -> ConfidenceWeightedLoss:
    torch.manual_seed(3)
    return ConfidenceWeightedLoss(loss, losses.ProxyNCALoss(CLASSES, WIDTH).double(), lam=0.1)


def guidance_of(arguments: dict[str, Any], rows: Any = slice(None)) -> float:
    x = arguments["embeddings"].detach().numpy()[rows]
    ids = arguments["sample_ids"].numpy()[rows]
    labels = arguments["labels"].numpy()[rows]
    return float(np.mean(literal.language_guidance(x, table().numpy()[ids], labels)))


@pytest.mark.parametrize("sample_weight", [None, torch.linspace(0, 2, SIZE).double()])
def test_outermost_equals_equation_4(sample_weight: torch.Tensor | None) -> None:
    """No weight touches the second term, neither a wrapper's nor the caller's."""
    arguments = batch()
    loss_fn = make(weighted(losses.MultiSimilarityLoss()))
    value = loss_fn(**arguments, sample_weight=sample_weight)
    per_sample = per_sample_loss(
        losses.MultiSimilarityLoss(), arguments["embeddings"], arguments["labels"]
    )
    weight = loss_fn.loss.decision.weight
    assert (weight < 1).any()
    if sample_weight is not None:
        weight = weight * sample_weight
    expected = (weight * per_sample).mean().item()
    assert value.item() == pytest.approx(expected + 0.5 * guidance_of(arguments), rel=1e-9)


def nn_loss() -> nn.Module:
    return losses.ContrastiveLoss()


def test_outermost_sees_the_rows_that_a_filter_drops() -> None:
    is_noisy = torch.arange(SAMPLES) % 3 == 0
    for inside in (nn_loss, lambda: weighted(nn_loss())):
        arguments = batch()
        plain = GroundTruthFilter(inside(), is_noisy)(**arguments).item()
        value = make(GroundTruthFilter(inside(), is_noisy))(**arguments).item()
        assert value == pytest.approx(plain + 0.5 * guidance_of(arguments), rel=1e-9)


def test_inside_a_weighting_its_values_are_weighted() -> None:
    """ProcSim's Table 1: regularization affected by confidence."""
    arguments = batch()
    outer = torch.linspace(0, 2, SIZE).double()
    for sample_weight in (None, outer):
        loss_fn = weighted(make(nn_loss()))
        value = loss_fn(**arguments, sample_weight=sample_weight).item()
        weight = loss_fn.decision.weight.numpy()
        if sample_weight is not None:
            weight = weight * outer.numpy()
        x, ids = arguments["embeddings"].detach().numpy(), arguments["sample_ids"].numpy()
        rows = literal.language_guidance(x, table().numpy()[ids], arguments["labels"].numpy())
        plain = weighted(nn_loss())(**arguments, sample_weight=sample_weight).item()
        assert value == pytest.approx(plain + 0.5 * np.mean(weight * rows), rel=1e-9)


def test_inside_a_filter_it_sees_the_kept_rows() -> None:
    arguments = batch()
    is_noisy = torch.arange(SAMPLES) % 3 == 0
    kept = ~is_noisy[arguments["sample_ids"]]
    value = GroundTruthFilter(make(nn_loss()), is_noisy)(**arguments).item()
    plain = GroundTruthFilter(nn_loss(), is_noisy)(**arguments).item()
    expected = plain + 0.5 * guidance_of(arguments, kept.numpy())
    assert value == pytest.approx(expected, rel=1e-9)


def test_one_number_cannot_be_weighted() -> None:
    """It is fine outside and inside a filter, and refused inside a weighting, state unchanged."""
    arguments = batch()
    is_noisy = torch.arange(SAMPLES) % 3 == 0
    for loss_fn in (
        RegularizedLoss(weighted(nn_loss()), torch.sum, 1.0),
        GroundTruthFilter(RegularizedLoss(nn_loss(), torch.sum, 1.0), is_noisy),
    ):
        assert loss_fn(**arguments).isfinite()
    loss_fn = weighted(RegularizedLoss(nn_loss(), torch.sum, 1.0))
    with pytest.raises(TypeError, match="one value per sample inside a wrapper that weights"):
        loss_fn(**arguments)
    assert loss_fn.step == 0


def test_by_labels_one_row_per_class() -> None:
    arguments = batch()
    of_classes = torch.randn(CLASSES, 5).double()
    guidance = LanguageGuidance(of_classes, by="labels")
    loss_fn = RegularizedLoss(nn_loss(), guidance, weight=2)
    value = loss_fn(arguments["embeddings"], arguments["labels"]).item()
    rows = of_classes[arguments["labels"]].unsqueeze(1).numpy()
    x, y = arguments["embeddings"].detach(), arguments["labels"]
    term = np.mean(literal.language_guidance(x.numpy(), rows, y.numpy()))
    assert loss_fn.regularization.item() == pytest.approx(term, rel=1e-9)
    assert value == pytest.approx(nn_loss()(x, y).item() + 2 * term, rel=1e-9)


@pytest.mark.parametrize(
    "regularizer",
    [
        lambda x: x.norm(dim=1),
        lambda x: x.norm(dim=1).mean(),
        regularizers.LpRegularizer(),
        nn.Sequential(nn.Linear(WIDTH, 1), nn.Flatten(0)).double(),
    ],
)
def test_any_callable_of_the_embeddings(regularizer: Any) -> None:
    arguments = batch()
    value = RegularizedLoss(nn_loss(), regularizer, weight=0.3)(**arguments)
    x, y = arguments["embeddings"], arguments["labels"]
    torch.testing.assert_close(value, nn_loss()(x, y) + 0.3 * regularizer(x).mean())


def test_a_regularizers_parameters_are_trained_with_the_loss() -> None:
    head = nn.Sequential(nn.Linear(WIDTH, 1), nn.Flatten(0)).double()
    loss_fn = weighted(RegularizedLoss(nn_loss(), head, weight=1.0))
    wrapped, own = loss_fn.parameter_groups(lr=0.5, proxy_lr=0.25)
    assert {id(p) for p in wrapped["params"]} == {id(p) for p in head.parameters()}
    assert len(own["params"]) == 1
    loss_fn(**batch()).backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


def test_a_regularizer_of_the_users_own() -> None:
    class Distance(Regularizer):
        def forward(self, embeddings, labels, sample_ids):  # type: ignore[no-untyped-def]
            return (embeddings - sample_ids.unsqueeze(1)).square().sum(dim=1)

    arguments = batch()
    loss_fn = RegularizedLoss(nn_loss(), Distance(), weight=1.0)
    loss_fn(**arguments)
    x, ids = arguments["embeddings"], arguments["sample_ids"]
    expected = (x - ids.unsqueeze(1)).square().sum(dim=1).mean()
    torch.testing.assert_close(loss_fn.regularization, expected.detach())


def test_a_regularizer_that_raises_leaves_the_state() -> None:
    def fails(embeddings: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    inner = weighted(nn_loss())
    loss_fn = RegularizedLoss(inner, fails, weight=1.0)
    with pytest.raises(RuntimeError, match="on purpose"):
        loss_fn(**batch())
    assert inner.step == 0
    assert inner.decision is loss_fn.decision is None


def test_no_gradient_reaches_the_language_embeddings() -> None:
    language = table().requires_grad_()
    guidance = LanguageGuidance(language, by="sample_ids")
    RegularizedLoss(nn_loss(), guidance, weight=1.0)(**batch()).backward()
    assert language.grad is None
    assert not guidance.table.requires_grad
    assert not list(guidance.parameters())


def test_the_table_is_a_setting_and_keeps_its_dtype() -> None:
    loss_fn = RegularizedLoss(
        nn_loss(), LanguageGuidance(table().half(), by="sample_ids"), weight=1.0
    )
    assert not [name for name in loss_fn.state_dict() if "table" in name]
    loss_fn(**batch())
    assert loss_fn.regularizer.table.dtype == torch.float16


def test_image_embeddings_guide_in_the_same_way() -> None:
    """ProcSim, appendix C: CLIP's embedding of each image, no classifier, no language model."""
    arguments = batch()
    images = torch.randn(SAMPLES, 12).double()
    loss_fn = RegularizedLoss(nn_loss(), LanguageGuidance(images, by="sample_ids"), weight=1.0)
    loss_fn(**arguments)
    rows = images[arguments["sample_ids"]].unsqueeze(1).numpy()
    x, y = arguments["embeddings"].detach().numpy(), arguments["labels"].numpy()
    want = np.mean(literal.language_guidance(x, rows, y))
    assert loss_fn.regularization.item() == pytest.approx(want, rel=1e-9)


def test_a_bad_row_is_refused_only_where_it_is_used() -> None:
    language = table()
    arguments = batch()
    unused = next(i for i in range(SAMPLES) if i not in arguments["sample_ids"].tolist())
    language[unused] = torch.nan
    loss_fn = RegularizedLoss(nn_loss(), LanguageGuidance(language, by="sample_ids"), 1.0)
    loss_fn(**arguments)
    arguments["sample_ids"] = arguments["sample_ids"].clone()
    arguments["sample_ids"][0] = unused
    with pytest.raises(ValueError, match="language must be finite"):
        loss_fn(**arguments)


def test_repr_shows_the_settings() -> None:
    assert "weight=0.5" in repr(make())
    assert "rows=40, by=sample_ids, direction=backward" in repr(make())


def test_a_term_that_is_switched_off_asks_for_nothing() -> None:
    class Needs(noisydml.Regularizer):
        def forward(self, embeddings: Any, labels: Any, sample_ids: Any) -> torch.Tensor:
            return embeddings.sum(dim=1)

        def own_checks(self, batch: Any) -> Any:
            raise ValueError("sample_ids must be given")

    batch = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    noisydml.RegularizedLoss(losses.ContrastiveLoss(), Needs(), weight=0.0)(*batch)
    with pytest.raises(ValueError, match="sample_ids must be given"):
        noisydml.RegularizedLoss(losses.ContrastiveLoss(), Needs(), weight=1.0)(*batch)


def test_a_term_in_half_precision_is_weighted_in_single() -> None:
    loss_fn = noisydml.RegularizedLoss(
        lambda x, y: x.sum(dim=1), lambda x: torch.full((len(x),), 2e4).half(), weight=10.0
    )
    assert loss_fn(torch.zeros(2, 3), torch.arange(2)) == 2e5


def test_rows_that_were_made_up_have_no_term() -> None:
    loss_fn = noisydml.RegularizedLoss(
        lambda x, y: x.sum(dim=1), lambda x: x.square().sum(dim=1), weight=1.0
    )
    loss_fn.run(Batch(torch.ones(2, 3), torch.arange(2)).extended(torch.full((2, 3), 5.0)))
    assert loss_fn.regularization == 3
