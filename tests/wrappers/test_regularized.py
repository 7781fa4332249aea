"""RegularizedLoss against Eq. 4 of ProcSim written out, in every place of a nesting."""

from __future__ import annotations

from typing import Any

import literal
import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, regularizers
from torch import nn

from noisydml import (
    ConfidenceWeightedLoss,
    GroundTruthFilter,
    LanguageGuidance,
    RegularizedLoss,
    Regularizer,
    per_sample_loss,
)

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


def test_equals_equation_4() -> None:
    arguments = batch()
    for loss_fn in (make(weighted(losses.MultiSimilarityLoss())), weighted(make())):
        value = loss_fn(**arguments)
        inner = loss_fn if isinstance(loss_fn, ConfidenceWeightedLoss) else loss_fn.loss
        per_sample = per_sample_loss(
            losses.MultiSimilarityLoss(), arguments["embeddings"], arguments["labels"]
        )
        expected = (inner.decision.weight * per_sample).mean().item()
        assert (inner.decision.weight < 1).any()
        assert value.item() == pytest.approx(expected + 0.5 * guidance_of(arguments), rel=1e-9)


def test_inside_and_outside_are_the_same_to_the_gradient() -> None:
    gradients = []
    for nest in (lambda: make(weighted(nn_loss())), lambda: weighted(make(nn_loss()))):
        arguments = batch()
        nest()(**arguments, sample_weight=torch.linspace(0, 1, SIZE)).backward()
        gradients.append(arguments["embeddings"].grad)
    torch.testing.assert_close(*gradients)


def nn_loss() -> nn.Module:
    return losses.ContrastiveLoss()


@pytest.mark.parametrize("depth", ["inside", "outside", "in the middle"])
def test_a_filter_does_not_hide_rows_from_the_regularizer(depth: str) -> None:
    is_noisy = torch.arange(SAMPLES) % 3 == 0
    loss_fn = {
        "inside": lambda: GroundTruthFilter(make(nn_loss()), is_noisy),
        "outside": lambda: make(GroundTruthFilter(nn_loss(), is_noisy)),
        "in the middle": lambda: GroundTruthFilter(make(weighted(nn_loss())), is_noisy),
    }[depth]()
    plain = {
        "inside": lambda: GroundTruthFilter(nn_loss(), is_noisy),
        "outside": lambda: GroundTruthFilter(nn_loss(), is_noisy),
        "in the middle": lambda: GroundTruthFilter(weighted(nn_loss()), is_noisy),
    }[depth]()
    arguments = batch()
    expected = plain(**arguments).item() + 0.5 * guidance_of(arguments)
    assert loss_fn(**arguments).item() == pytest.approx(expected, rel=1e-9)


def test_the_ablation_weights_and_drops_the_regularizer_too() -> None:
    arguments = batch()
    loss_fn = weighted(make(nn_loss(), weighted=True))
    value = loss_fn(**arguments).item()
    weight = loss_fn.decision.weight.numpy()
    x, ids = arguments["embeddings"].detach().numpy(), arguments["sample_ids"].numpy()
    rows = literal.language_guidance(x, table().numpy()[ids], arguments["labels"].numpy())
    plain = weighted(nn_loss())(**arguments).item()
    assert value == pytest.approx(plain + 0.5 * np.mean(weight * rows), rel=1e-9)

    is_noisy = torch.arange(SAMPLES) % 3 == 0
    kept = ~is_noisy[arguments["sample_ids"]]
    value = GroundTruthFilter(make(nn_loss(), weighted=True), is_noisy)(**arguments).item()
    plain = GroundTruthFilter(nn_loss(), is_noisy)(**arguments).item()
    expected = plain + 0.5 * guidance_of(arguments, kept.numpy())
    assert value == pytest.approx(expected, rel=1e-9)


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

    for weighted_too in (False, True):
        inner = weighted(nn_loss())
        loss_fn = RegularizedLoss(inner, fails, weight=1.0, weighted=weighted_too)
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
    assert "weight=0.5, weighted=False" in repr(make())
    assert "rows=40, by=sample_ids, direction=backward" in repr(make())
