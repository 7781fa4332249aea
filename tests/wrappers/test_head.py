"""The head: features in, embeddings out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from noisydml.pml.batch import Batch
from noisydml.wrappers.head import embed, embed_batch, output_width


def head() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())


def test_no_head_is_the_batch_itself() -> None:
    batch = Batch(torch.ones(2, 4), torch.zeros(2).long())
    assert embed_batch(None, batch) is batch


def test_the_reference_is_embedded_too() -> None:
    linear, features, reference = nn.Linear(4, 3), torch.randn(2, 4), torch.randn(5, 4)
    batch = embed_batch(linear, Batch(features, torch.zeros(2).long(), ref_emb=reference))
    assert torch.equal(batch.embeddings, linear(features))
    assert torch.equal(batch.ref_emb, linear(reference))


def test_no_row_never_reaches_the_head_but_its_parameters() -> None:
    module, features = head(), torch.empty(0, 4, requires_grad=True)
    embeddings = embed(module, features)
    assert embeddings.shape == (0, 3)
    embeddings.sum().backward()
    assert all(not p.grad.any() for p in module.parameters())
    assert features.grad.shape == (0, 4)


def test_asking_for_the_width_changes_nothing() -> None:
    module = head()
    module[2].eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert output_width(module, 4) == 3
    assert [part.training for part in module] == [True, True, False]
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_head_that_fails_is_left_in_its_mode() -> None:
    module = head()
    with pytest.raises(RuntimeError):
        output_width(module, 5)
    assert module.training


@pytest.mark.parametrize("module", [nn.Flatten(0), nn.Unflatten(1, (2, 2))])
def test_the_wrong_shape(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="head must return 3 embeddings, one per feature, got"):
        embed(module, torch.ones(3, 4))


@pytest.mark.parametrize("features", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_features_of_another_precision_than_the_head(
    features: torch.dtype, weights: torch.dtype, autocast: bool
) -> None:
    if autocast and weights == torch.float64:
        return  # autocast leaves float64 alone
    head, x = torch.nn.Linear(4, 3).to(weights), torch.randn(5, 4).to(features).requires_grad_()
    with torch.autocast("cpu", enabled=autocast):
        embed(head, x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == features
