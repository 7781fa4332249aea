"""ConfidenceWeightedLoss against the paper's Algorithm 1 and Equations 3 to 5, written as loops."""

from __future__ import annotations

import warnings
from typing import Any

import literal
import numpy as np
import pytest
import scipy.special
import torch
from pytorch_metric_learning import losses
from torch import nn

from noisydml import ConfidenceWeightedLoss, GroundTruthFilter
from noisydml.functional import gaussian_mixture_threshold
from noisydml.wrappers import confidence

CLASSES, WIDTH = 6, 12
ALPHA, BETA, BASE = 2.0, 40.0, 0.1  # appendix A.4


def proxy_losses(x: np.ndarray, y: np.ndarray, proxies: np.ndarray) -> np.ndarray:
    return np.array(literal.proxy_nca(x, y, proxies, scale=1.0))


def step_of_the_paper(
    x: np.ndarray, y: np.ndarray, proxies: np.ndarray, lam: float, tau: float | None = None
) -> tuple[float, np.ndarray, float]:
    judged = proxy_losses(x, y, proxies)
    tau = literal.otsu_threshold(judged) if tau is None else tau
    sigma = np.exp(-scipy.special.lambertw(np.maximum((judged - tau) / (2 * lam), 0)).real)
    return float(np.mean(sigma * literal.multi_similarity(x, y, ALPHA, BETA, BASE))), sigma, tau


def make(**settings: object) -> ConfidenceWeightedLoss:
    return ConfidenceWeightedLoss(
        losses.MultiSimilarityLoss(ALPHA, BETA, BASE),
        losses.ProxyNCALoss(CLASSES, WIDTH).double(),
        **{"lam": 0.1, **settings},
    )


def random_batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    size = int(rng.integers(4, 24))
    return rng.normal(size=(size, WIDTH)), rng.integers(CLASSES, size=size)


@pytest.mark.parametrize("lam", [1.0, 0.1, 0.01])
def test_equals_the_paper_over_random_steps(lam: float) -> None:
    rng = np.random.default_rng(0)
    loss_fn = make(lam=lam)
    optimizer = torch.optim.Adam(loss_fn.parameter_groups(lr=1e-3, proxy_lr=0.05))
    weighted = 0
    for _ in range(60):
        x, y = random_batch(rng)
        proxies = loss_fn.confidence_loss.proxies.detach().numpy().copy()
        loss = loss_fn(torch.tensor(x, requires_grad=True), torch.tensor(y))
        value, sigma, tau = step_of_the_paper(x, y, proxies, lam)
        assert loss.item() == pytest.approx(value, rel=1e-9)
        np.testing.assert_allclose(loss_fn.decision.weight, sigma, rtol=1e-9)
        assert -loss_fn.decision.threshold.item() == pytest.approx(tau, rel=1e-12)
        np.testing.assert_allclose(-loss_fn.decision.score, proxy_losses(x, y, proxies))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weighted += (sigma < 1).sum()
    assert weighted > 100


@pytest.mark.parametrize("decay", [0.9, 0.0, None])
def test_running_mean_threshold(decay: float | None) -> None:
    rng = np.random.default_rng(1)
    loss_fn = make(threshold="running_mean", decay=decay)
    proxies = loss_fn.confidence_loss.proxies.detach().numpy()
    tau, means, seen = 0.0, [], []
    for step in range(20):
        x, y = random_batch(rng)
        loss = loss_fn(torch.tensor(x), torch.tensor(y))
        seen += proxy_losses(x, y, proxies).tolist()
        means.append(proxy_losses(x, y, proxies).mean())
        if decay is None:
            tau = float(np.mean(seen))
        else:
            tau = means[0] if step == 0 else decay * tau + (1 - decay) * means[-1]
        value, sigma, _ = step_of_the_paper(x, y, proxies, 0.1, tau)
        assert loss.item() == pytest.approx(value, rel=1e-9)
        np.testing.assert_allclose(loss_fn.decision.weight, sigma, rtol=1e-9)


def test_callable_threshold_gets_all_losses() -> None:
    seen: list[torch.Tensor] = []

    def threshold(values: torch.Tensor) -> float:
        seen.append(values)
        return 1.5

    rng = np.random.default_rng(2)
    x, y = random_batch(rng)
    loss_fn = make(threshold=threshold)
    proxies = loss_fn.confidence_loss.proxies.detach().numpy()
    loss = loss_fn(torch.tensor(x), torch.tensor(y))
    assert loss.item() == pytest.approx(step_of_the_paper(x, y, proxies, 0.1, 1.5)[0], rel=1e-9)
    np.testing.assert_allclose(seen[0], proxy_losses(x, y, proxies))
    assert seen[0].dtype == torch.float64
    assert not seen[0].requires_grad


def test_an_infinite_threshold_trusts_every_sample() -> None:
    loss_fn = make(threshold=lambda values: torch.inf)
    x, y = random_batch(np.random.default_rng(3))
    loss_fn(torch.tensor(x), torch.tensor(y))
    assert (loss_fn.decision.weight == 1).all()


def test_warmup_counts_training_steps_only() -> None:
    loss_fn = make(warmup=3, lam=0.01)
    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(4)))
    for _ in range(5):
        loss_fn.eval()
        loss_fn(x, y)
    loss_fn.train()
    loss_fn(x[:0], y[:0])  # an empty batch is no step either
    for step in range(5):
        loss_fn(x, y)
        assert (loss_fn.decision.weight < 1).any() == (step >= 3)
    assert loss_fn.step == 5


def test_warmup_fills_the_running_mean() -> None:
    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(5)))
    loss_fn = make(warmup=2, threshold="running_mean")
    loss_fn(x, y)
    assert loss_fn.mean == -loss_fn.decision.score.mean()


def test_sample_weight_multiplies_the_confidence() -> None:
    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(6)))
    weight = torch.rand(len(x)).double()
    loss_fn = make()
    proxies = loss_fn.confidence_loss.proxies.detach().numpy()
    loss = loss_fn(x, y, sample_weight=weight)
    _, sigma, _ = step_of_the_paper(x.numpy(), y.numpy(), proxies, 0.1)
    trained = literal.multi_similarity(x.numpy(), y.numpy(), ALPHA, BETA, BASE)
    expected = np.mean(weight.numpy() * sigma * trained)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(loss_fn.decision.weight, sigma, rtol=1e-9)


class TestProxiesInTheOptimizer:
    def groups(self, loss_fn: nn.Module) -> list[tuple[set[int], float]]:
        return [
            ({id(p) for p in group["params"]}, group["lr"])
            for group in loss_fn.parameter_groups(lr=0.5, proxy_lr=0.25)
        ]

    def test_proxies_have_a_group_of_their_own(self) -> None:
        loss_fn = make()
        assert self.groups(loss_fn) == [({id(loss_fn.confidence_loss.proxies)}, 0.25)]
        assert loss_fn.parameter_groups(lr=0.5)[0]["weight_decay"] == 0
        assert loss_fn.parameter_groups(lr=0.5)[0]["lr"] == 1e-3  # Adam's default, appendix A.3

    def test_the_wrapped_loss_has_another(self) -> None:
        soft_triple, proxies = losses.SoftTripleLoss(3, 4), losses.ProxyNCALoss(3, 4)
        loss_fn = ConfidenceWeightedLoss(soft_triple, proxies, lam=1.0)
        assert self.groups(loss_fn) == [
            ({id(p) for p in soft_triple.parameters()}, 0.5),
            ({id(proxies.proxies)}, 0.25),
        ]

    def test_nested_wrappers_are_reached(self) -> None:
        inner = make()
        outer = GroundTruthFilter(inner, torch.zeros(3).bool())
        assert self.groups(outer) == self.groups(inner)
        assert (
            GroundTruthFilter(losses.ContrastiveLoss(), torch.zeros(3).bool()).parameter_groups(
                lr=1.0
            )
            == []
        )

    def step(self, loss_fn: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(7)))
        loss = loss_fn(x.requires_grad_(), y)
        if optimizer is not None:
            optimizer.zero_grad()
        loss.backward()
        if optimizer is not None:
            optimizer.step()

    def test_forgotten_proxies_are_reported_once(self) -> None:
        loss_fn = make()
        for _ in range(500):
            self.step(loss_fn, None)
        with pytest.warns(UserWarning, match=r"not changed in 500 .*parameter_groups") as caught:
            self.step(loss_fn, None)
        assert caught[0].filename == __file__
        for _ in range(510):
            self.step(loss_fn, None)  # warnings are errors here

    def test_a_resumed_run_goes_on_counting(self) -> None:
        stopped, resumed = make(), make()
        for _ in range(300):
            self.step(stopped, None)
        resumed.load_state_dict(stopped.state_dict())
        for _ in range(200):
            self.step(resumed, None)
        with pytest.warns(UserWarning, match="not changed in 500"):
            self.step(resumed, None)

    @pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
    @pytest.mark.parametrize("how", ["foreach", "fused"])
    def test_trained_proxies_are_not(
        self, kind: type, how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(confidence, "_IDLE_STEPS", 50)
        loss_fn = make()
        optimizer = kind(loss_fn.parameter_groups(lr=1e-3), **{how: True})
        for _ in range(60):
            self.step(loss_fn, optimizer)

    def test_frozen_proxies_are_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(confidence, "_IDLE_STEPS", 50)
        loss_fn = make()
        loss_fn.confidence_loss.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(60):
                self.step(loss_fn, None)

    def test_wrappers_inside_multiple_losses_are_reached(self) -> None:
        inner = make()
        outer = GroundTruthFilter(losses.MultipleLosses([inner]), torch.zeros(3).bool())
        assert self.groups(outer) == self.groups(inner)


def test_a_state_without_running_mean_is_refused() -> None:
    """Else the mean would start from a 0 that no batch has had."""
    with pytest.raises(RuntimeError, match=r"Missing key.*mean"):
        make(threshold="running_mean").load_state_dict(make().state_dict())


@pytest.mark.parametrize("inside", [False, True])
def test_a_memory_cannot_judge(inside: bool) -> None:
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH)
    judge = losses.MultipleLosses([memory]) if inside else memory
    with pytest.raises(TypeError, match="CrossBatchMemory"):
        ConfidenceWeightedLoss(losses.ContrastiveLoss(), judge, lam=1.0)


def test_a_threshold_of_no_number_is_named() -> None:
    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(8)))
    with pytest.raises(TypeError, match=r"threshold must return a number .* got NoneType"):
        make(threshold=lambda values: None)(x, y)


def test_repr_shows_the_settings() -> None:
    assert "lam=0.1, threshold=otsu, warmup=0" in repr(make())


def test_gaussian_mixture_threshold_is_the_functions() -> None:
    x, y = random_batch(np.random.default_rng(9))
    loss_fn = make(threshold="gaussian_mixture")
    proxies = loss_fn.confidence_loss.proxies.detach().numpy()
    loss_fn(torch.tensor(x), torch.tensor(y))
    want = gaussian_mixture_threshold(torch.tensor(proxy_losses(x, y, proxies)))
    torch.testing.assert_close(-loss_fn.decision.threshold, want)


@pytest.mark.parametrize("threshold", [1.5, 2, -0.5, torch.inf])
def test_a_number_is_the_threshold_of_every_batch(threshold: float) -> None:
    rng = np.random.default_rng(10)
    loss_fn = make(threshold=threshold)
    proxies = loss_fn.confidence_loss.proxies.detach().numpy()
    for _ in range(3):
        x, y = random_batch(rng)
        loss = loss_fn(torch.tensor(x), torch.tensor(y))
        assert -loss_fn.decision.threshold == threshold
        value = step_of_the_paper(x, y, proxies, 0.1, threshold)[0]
        assert loss.item() == pytest.approx(value, rel=1e-9)


def test_only_finite_losses_count_in_the_mean() -> None:
    def per_sample(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return embeddings.sum(dim=1)

    settings: Any = {"threshold": "running_mean", "decay": None, "validate_args": False}
    loss_fn = ConfidenceWeightedLoss(per_sample, per_sample, lam=0.1, **settings)
    loss_fn(torch.tensor([[1.0], [2.0], [torch.inf]]), torch.arange(3))
    loss_fn(torch.full((4, 1), 6.0), torch.arange(4))
    assert (loss_fn.count, loss_fn.mean) == (6, 4.5)
