"""SuperLoss against Eq. 1-2 of ProcSim written as loops, and the traps of known ports."""

from __future__ import annotations

import math
from typing import Any

import literal
import mpmath
import numpy as np
import pytest
import scipy.optimize
import torch
from pytorch_metric_learning import losses, reducers
from torch import nn

from noisydml import GatheredLoss, SuperLoss, per_sample_loss

WIDTH, CLASSES = 4, 3
BRANCH = -2 / math.e


def sigma_of(loss: float, tau: float, lam: float) -> float:
    """Eq. 2, in 50 digits."""
    with mpmath.workdps(50):
        lowest = -2 / mpmath.e
        excess = max(lowest, (mpmath.mpf(loss) - mpmath.mpf(tau)) / mpmath.mpf(lam))
        return float(mpmath.exp(-mpmath.lambertw(excess / 2).real))


def random_batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    size = int(rng.integers(4, 12))
    return rng.normal(size=(size, WIDTH)), rng.integers(CLASSES, size=size)


def means_of(history: list[list[float]], decay: float | None) -> float:
    """Of the losses of each batch."""
    if decay is None:
        return math.fsum(map(math.fsum, history)) / sum(map(len, history))
    mean = math.fsum(history[0]) / len(history[0])
    for values in history[1:]:
        batch_mean = math.fsum(values) / len(values)
        mean = decay * mean + (1 - decay) * batch_mean  # decay is the weight of the past
    return mean


@pytest.mark.parametrize("decay", [None, 0.9, 0.0])
@pytest.mark.parametrize("lam", [0.05, 1.0])
def test_samples_over_random_steps(lam: float, decay: float | None) -> None:
    rng = np.random.default_rng(0)
    loss_fn = SuperLoss(losses.MultiSimilarityLoss(2, 40, 0.1), lam=lam, decay=decay)
    history: list[list[float]] = []
    for _ in range(10):
        x, y = random_batch(rng)
        per_sample = literal.multi_similarity(x, y, 2, 40, 0.1)
        history.append(per_sample.tolist())
        tau = means_of(history, decay)
        sigma = np.array([sigma_of(loss, tau, lam) for loss in per_sample])
        value = loss_fn(torch.tensor(x), torch.tensor(y))
        assert value.item() == pytest.approx(np.mean(sigma * per_sample), rel=1e-7)
        np.testing.assert_allclose(loss_fn.decision.weight, sigma, rtol=1e-7)
        np.testing.assert_allclose(loss_fn.decision.score, -per_sample, rtol=1e-9)
        assert -loss_fn.decision.threshold.item() == pytest.approx(tau, rel=1e-9)
        assert loss_fn.mean.item() == pytest.approx(tau, rel=1e-9)


def pairs(x: np.ndarray, y: np.ndarray) -> dict[str, dict[tuple[int, int], float]]:
    """The contrastive loss of every pair: distances of unit vectors, margins 0 and 1."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    found: dict[str, dict[tuple[int, int], float]] = {"pos": {}, "neg": {}}
    for i in range(len(x)):
        for j in range(len(x)):
            distance = float(np.linalg.norm(x[i] - x[j]))
            if i != j and y[i] == y[j]:
                found["pos"][i, j] = distance
            elif y[i] != y[j]:
                found["neg"][i, j] = max(0.0, 1 - distance)
    return found


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("reducer", ["mean", "nonzero"])
def test_pairs_over_random_steps(reducer: str, decay: float | None) -> None:
    """Each pair's loss is weighted, then reduced; a mean of its own for either kind."""
    rng = np.random.default_rng(1)
    lam = 0.2
    reduce = reducers.MeanReducer() if reducer == "mean" else reducers.AvgNonZeroReducer()
    loss_fn = SuperLoss(losses.ContrastiveLoss(reducer=reduce), lam=lam, level="pair", decay=decay)
    history: dict[str, list[list[float]]] = {"pos": [], "neg": []}
    for _ in range(10):
        x, y = random_batch(rng)
        expected = 0.0
        for kind, found in pairs(x, y).items():
            if not found:
                continue
            values = list(found.values())
            history[kind].append(values)
            tau = means_of(history[kind], decay)
            weighted = [sigma_of(v, tau, lam) * v for v in values]
            divisor = sum(v > 0 for v in values) if reducer == "nonzero" else len(values)
            expected += math.fsum(weighted) / max(divisor, 1)
        value = loss_fn(torch.tensor(x), torch.tensor(y))
        assert value.item() == pytest.approx(expected, rel=1e-7)
        taus = [means_of(history[kind], decay) for kind in ("pos", "neg")]
        np.testing.assert_allclose(loss_fn.mean, taus, rtol=1e-9)


def test_the_weight_of_an_anchor_is_what_its_pairs_weights_make_of_its_loss() -> None:
    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(2)))
    loss_fn = SuperLoss(losses.ContrastiveLoss(), lam=0.2, level="pair")
    value = loss_fn(x, y)
    per_sample = per_sample_loss(losses.ContrastiveLoss(), x, y)
    torch.testing.assert_close((loss_fn.decision.weight * per_sample).mean(), value)
    assert torch.equal(loss_fn.decision.score, loss_fn.decision.weight)


def test_sigma_minimises_equation_1() -> None:
    lam, tau = 0.7, 1.3
    for loss in (0.9, 1.3, 2.0, 5.0):  # above tau - 2 lam / e there is a minimum inside

        def objective(log_sigma: float, loss: float = loss) -> float:
            return (loss - tau) * math.exp(log_sigma) + lam * log_sigma**2

        best = scipy.optimize.minimize_scalar(objective, bounds=(-5, 1), method="bounded").x
        assert math.exp(best) == pytest.approx(sigma_of(loss, tau, lam), rel=1e-3)


def test_the_gradient_is_that_of_equation_1_with_sigma_constant() -> None:
    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(3)))
    x.requires_grad_()
    loss_fn = SuperLoss(losses.MultiSimilarityLoss(), lam=0.3)
    (got,) = torch.autograd.grad(loss_fn(x, y), x)
    sigma, tau = loss_fn.decision.weight, -loss_fn.decision.threshold
    per_sample = per_sample_loss(losses.MultiSimilarityLoss(), x, y)
    equation_1 = ((per_sample - tau) * sigma + 0.3 * sigma.log() ** 2).mean()
    torch.testing.assert_close(got, torch.autograd.grad(equation_1, x)[0])


class Given(nn.Module):
    """Returns the embeddings as the losses of the samples."""

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return embeddings.squeeze(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("lam", [1.0, 0.25, 1e-4, 1e4, 1 / 3])
def test_at_and_around_the_branch_point(lam: float, dtype: torch.dtype) -> None:
    """SciPy's lambertw(-1/e) is NaN in float64, which turned every easy sample's weight to NaN."""
    tau = 3.0
    at_branch = tau + lam * BRANCH
    losses_ = [at_branch, math.nextafter(at_branch, 9), math.nextafter(at_branch, -9)]
    losses_ += [at_branch + lam * d for d in (1e-3, -1e-3, 1e-6, -1e-6, 1e-12)] + [0.0, tau]
    x = torch.tensor(losses_, dtype=torch.float64).to(dtype).unsqueeze(1).requires_grad_()
    loss_fn = SuperLoss(Given(), lam=lam, decay=0.5)
    loss_fn.mean, loss_fn.count = torch.full((1,), tau).double(), torch.ones(1).long()
    loss_fn.decay = 1 - 1e-16  # the mean stays
    value = loss_fn(x, torch.zeros(len(x)).long())
    value.backward()
    weight = loss_fn.decision.weight
    assert value.isfinite()
    assert x.grad.isfinite().all()
    assert weight.isfinite().all()
    assert ((weight > 0) & (weight <= math.e * (1 + 1e-12))).all()
    if dtype == torch.float64:
        want = [sigma_of(v, tau, lam) for v in losses_]
        np.testing.assert_allclose(weight, want, rtol=2e-6)
    assert weight[-2] == pytest.approx(sigma_of(0.0, tau, lam))


def test_easy_samples_gain_weight_and_hard_ones_lose() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    loss_fn = SuperLoss(Given(), lam=1.0)
    loss_fn(x, torch.zeros(4).long())
    weight = loss_fn.decision.weight
    assert (weight.diff() < 0).all()
    assert weight[1] > 1 > weight[2]
    assert torch.equal(weight < 1, loss_fn.decision.score < loss_fn.decision.threshold)


def test_a_mean_of_zero_is_not_unset() -> None:
    loss_fn = SuperLoss(Given(), lam=1.0, decay=0.9)
    y = torch.zeros(2).long()
    loss_fn(torch.zeros(2, 1), y)
    assert loss_fn.mean == 0
    loss_fn(torch.ones(2, 1), y)
    assert loss_fn.mean == pytest.approx(0.1)


def test_warmup_fills_the_mean_and_weights_nothing() -> None:
    loss_fn = SuperLoss(Given(), lam=0.1, warmup=2)
    x, y = torch.tensor([[0.0], [4.0]]), torch.zeros(2).long()
    for step in range(4):
        value = loss_fn(x, y)
        assert (value == 2) == (step < 2)
    assert loss_fn.mean == 2


def test_a_batch_without_positive_pairs_leaves_their_mean() -> None:
    loss_fn = SuperLoss(losses.ContrastiveLoss(), lam=1.0, level="pair")
    x = torch.randn(4, WIDTH)
    loss_fn(x, torch.arange(4))
    assert loss_fn.count.tolist() == [0, 12]
    loss_fn(x, torch.zeros(4).long())
    assert loss_fn.count.tolist() == [12, 12]
    assert loss_fn.step == 2


def test_the_pairs_of_a_memory() -> None:
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, memory_size=32)
    loss_fn = SuperLoss(memory, lam=0.1, level="pair")
    plain = losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, memory_size=32)
    for seed in range(3):
        x, y = (torch.tensor(part).float() for part in random_batch(np.random.default_rng(seed)))
        value = loss_fn(x, y.long())
        plain(x, y.long())
        assert value.isfinite()
        assert torch.equal(memory.embedding_memory, plain.embedding_memory)  # enqueued once


def test_regularizers_of_the_loss_are_not_weighted() -> None:
    from pytorch_metric_learning.regularizers import LpRegularizer

    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(4)))
    for level in ("sample", "pair"):
        plain = SuperLoss(losses.ContrastiveLoss(), lam=0.1, level=level)(x, y)
        loss = losses.ContrastiveLoss(embedding_regularizer=LpRegularizer(), embedding_reg_weight=2)
        with_term = SuperLoss(loss, lam=0.1, level=level)(x, y)
        torch.testing.assert_close(with_term - plain, 2 * x.norm(dim=1).mean())


def test_half_precision_embeddings_are_judged_in_single() -> None:
    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(5)))
    for dtype in (torch.float16, torch.bfloat16):
        half, single = (SuperLoss(losses.MultiSimilarityLoss(), lam=0.1) for _ in range(2))
        value = half(x.to(dtype), y)
        assert torch.equal(value, single(x.to(dtype).float(), y))


@pytest.mark.parametrize("loss", [losses.TripletMarginLoss(), losses.ProxyNCALoss(3, 4), Given()])
def test_pairs_are_asked_for_where_there_are_none(loss: Any) -> None:
    x, y = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    with pytest.raises(TypeError, match="has no loss for every pair"):
        SuperLoss(loss, lam=1.0, level="pair")(x, y)


def test_it_is_the_innermost() -> None:
    with pytest.raises(TypeError, match="loss must not be a wrapper"):
        SuperLoss(GatheredLoss(losses.ContrastiveLoss()), lam=1.0)


def test_repr_shows_the_settings() -> None:
    assert "lam=0.5, level=sample, warmup=0" in repr(SuperLoss(Given(), lam=0.5))
