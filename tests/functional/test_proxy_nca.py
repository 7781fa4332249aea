"""Proxy-NCA against pytorch-metric-learning's terms and against a literal loop."""

import math

import literal
import pytest
import torch
from pytorch_metric_learning.losses import ProxyNCALoss
from pytorch_metric_learning.reducers import DoNothingReducer

from noisydml.functional import proxy_nca

B, C, D = 23, 7, 12


def pml_terms(embeddings, labels, proxies, scale=1):
    """The loss of each sample that PML has one for, and which samples those are."""
    loss = ProxyNCALoss(*proxies.shape, softmax_scale=scale, reducer=DoNothingReducer())
    loss.proxies = torch.nn.Parameter(proxies)
    terms = loss(embeddings, labels)["loss"]
    return terms["losses"], terms["indices"]


@pytest.fixture
def batch():
    embeddings = torch.randn(B, D, dtype=torch.float64) * 3
    proxies = torch.randn(C, D, dtype=torch.float64)
    return embeddings, torch.randint(C, (B,)), proxies


def test_equals_the_terms_of_pytorch_metric_learning_with_its_defaults(batch):
    terms, samples = pml_terms(*batch)

    assert samples.tolist() == list(range(B))
    torch.testing.assert_close(proxy_nca(*batch), terms.detach(), rtol=1e-12, atol=1e-12)


def test_its_mean_is_the_value_of_pytorch_metric_learning_in_float32(batch):
    embeddings, labels, proxies = batch
    loss = ProxyNCALoss(C, D)
    loss.proxies = torch.nn.Parameter(proxies.float())
    want = loss(embeddings.float(), labels).detach()

    torch.testing.assert_close(
        proxy_nca(embeddings.float(), labels, loss.proxies.data).mean(), want
    )


@pytest.mark.parametrize("scale", [1.0, 0.1, 8.0, 50])
def test_agrees_with_a_literal_loop(batch, scale):
    embeddings, labels, proxies = batch
    want = literal.proxy_nca(embeddings.numpy(), labels.tolist(), proxies.numpy(), scale)

    assert proxy_nca(*batch, scale).tolist() == pytest.approx(want, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_gradients_equal_those_of_pytorch_metric_learning(batch, scale):
    embeddings, labels, proxies = batch
    weight = torch.rand(B, dtype=torch.float64)
    x, p = embeddings.clone().requires_grad_(), proxies.clone().requires_grad_()
    got = torch.autograd.grad((weight * proxy_nca(x, labels, p, scale)).sum(), (x, p))

    x = embeddings.clone().requires_grad_()
    loss = ProxyNCALoss(C, D, softmax_scale=scale, reducer=DoNothingReducer())
    loss.proxies = torch.nn.Parameter(proxies.clone())
    terms = loss(x, labels)["loss"]["losses"]
    want = torch.autograd.grad((weight * terms).sum(), (x, loss.proxies))

    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gradients_agree_with_finite_differences(batch):
    embeddings, labels, proxies = batch
    x, p = embeddings[:4].clone().requires_grad_(), proxies.clone().requires_grad_()

    assert torch.autograd.gradcheck(lambda a, b: proxy_nca(a, labels[:4], b, 2.0), (x, p))


def test_a_sample_far_from_its_proxy_has_a_finite_loss_where_pml_drops_it():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    proxies = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([1, 1])  # the first sits on the other class's proxy
    scale = 1000.0
    _, samples = pml_terms(embeddings.detach(), labels, proxies, scale)
    assert samples.tolist() == [1]

    losses = proxy_nca(embeddings, labels, proxies, scale)
    want = literal.proxy_nca(embeddings.detach().numpy(), [1, 1], proxies.numpy(), scale)
    assert losses.tolist() == pytest.approx(want, rel=1e-6)
    assert losses[0].item() == pytest.approx(4 * scale)
    (slope,) = torch.autograd.grad(losses.sum(), embeddings)
    assert slope.isfinite().all()


def test_does_not_depend_on_the_length_of_embeddings_and_proxies(batch):
    embeddings, labels, proxies = batch
    stretched = proxy_nca(
        embeddings * torch.rand(B, 1).double(), labels, proxies * torch.rand(C, 1).double()
    )

    torch.testing.assert_close(stretched, proxy_nca(*batch), rtol=1e-12, atol=1e-12)


def test_a_zero_embedding_is_equally_far_from_all_proxies(batch):
    _, labels, proxies = batch
    losses = proxy_nca(torch.zeros(B, D, dtype=torch.float64), labels, proxies)

    torch.testing.assert_close(losses, torch.full_like(losses, math.log(C)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_takes_labels_of_any_integer_dtype(batch, dtype):
    embeddings, labels, proxies = batch

    assert torch.equal(proxy_nca(embeddings, labels.to(dtype), proxies), proxy_nca(*batch))


def test_single_precision_stays_single(batch):
    embeddings, labels, proxies = batch
    losses = proxy_nca(embeddings.float(), labels, proxies.float())

    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), proxy_nca(*batch), rtol=1e-5, atol=1e-5)


def test_an_empty_batch_has_no_losses_and_one_class_has_none_to_lose():
    proxies = torch.randn(C, D)
    labels = torch.zeros(0, dtype=torch.int64)

    assert proxy_nca(torch.empty(0, D), labels, proxies).shape == (0,)
    one_class = proxy_nca(torch.randn(3, D), torch.zeros(3, dtype=torch.int64), proxies[:1])
    assert one_class.tolist() == [0, 0, 0]


def test_leaves_its_inputs_alone(batch):
    before = [tensor.clone() for tensor in batch]
    proxy_nca(*batch)

    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))


def test_never_asks_the_host(dataless):
    x, proxies = torch.empty(B, D, device=dataless), torch.empty(C, D, device=dataless)
    losses = proxy_nca(x, torch.empty(B, device=dataless, dtype=torch.int64), proxies)

    assert (losses.shape, losses.device) == ((B,), dataless)


def test_its_gradients_never_ask_the_host():
    x = torch.empty(B, D, device="meta", requires_grad=True)
    proxies = torch.empty(C, D, device="meta", requires_grad=True)
    losses = proxy_nca(x, torch.empty(B, device="meta", dtype=torch.int64), proxies)
    slopes = torch.autograd.grad(losses.sum(), (x, proxies))

    assert [slope.shape for slope in slopes] == [(B, D), (C, D)]


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("embeddings", torch.ones(B, D).int(), TypeError, "embeddings must be a floating-point"),
        ("embeddings", [[1.0]], TypeError, "embeddings must be a floating-point"),
        ("embeddings", torch.ones(D), ValueError, "embeddings must have 2 dimensions"),
        ("embeddings", torch.ones(B, D + 1), ValueError, "embeddings and proxies .* same width"),
        ("labels", torch.zeros(B), TypeError, "labels must be an integer tensor"),
        ("labels", [0] * B, TypeError, "labels must be an integer"),
        ("labels", torch.zeros(B - 1).long(), ValueError, f"labels must have {B} entries"),
        ("labels", torch.zeros(B, 1).long(), ValueError, "labels must have 1 dimension"),
        ("proxies", torch.ones(C, D).int(), TypeError, "proxies must be a floating-point"),
        ("proxies", torch.ones(D), ValueError, "proxies must have 2 dimensions"),
    ],
)
def test_refuses_what_does_not_fit_by_name(argument, value, error, message):
    arguments = {
        "embeddings": torch.randn(B, D),
        "labels": torch.zeros(B, dtype=torch.int64),
        "proxies": torch.randn(C, D),
    }
    with pytest.raises(error, match=f"^{message}"):
        proxy_nca(**{**arguments, argument: value})


def test_no_label_is_ignored() -> None:
    """-100 means "ignore" to cross_entropy: the sample would have a loss of 0, and look clean."""
    with pytest.raises((IndexError, RuntimeError), match="index"):
        proxy_nca(torch.eye(3), torch.tensor([0, -100, 1]), torch.eye(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    embeddings, proxies = torch.randn(6, 8).to(dtype), torch.randn(3, 8).to(dtype)
    embeddings[0] = 0
    labels = torch.arange(6) % 3
    got = proxy_nca(embeddings, labels, proxies)
    assert got.dtype == torch.float32
    assert torch.equal(got, proxy_nca(embeddings.float(), labels, proxies.float()))


def test_the_wider_dtype_wins() -> None:
    got = proxy_nca(torch.eye(3), torch.arange(3), torch.eye(3).double())
    assert got.dtype == torch.float64
