"""Promise 3: weights, thresholds, scores and memories carry no gradient; proxies get theirs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from contract.cases import (
    CASES,
    CLASSES,
    LEAVES,
    WIDTH,
    assert_equal,
    assert_same_state,
    build,
    chain,
    judges,
    make_batch,
    naming,
    state_of,
)
from pytorch_metric_learning import losses
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from noisydml import ConfidenceWeightedLoss, LossWrapper, per_sample_loss

WEIGHING_ONLY = [n for n, case in CASES.items() if case.weighs and not case.drops]


def effective_weight(case: str, leaf: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Value, its gradient, and the weights of all wrappers of a nesting multiplied."""
    arguments = make_batch()
    wrapper = build(case, leaf)
    value = wrapper(**arguments)
    weight = torch.ones(24, dtype=torch.float64)
    for each in judges(wrapper):
        weight = weight * each.decision.weight
    (grad,) = torch.autograd.grad(value, arguments["embeddings"])
    return value, grad, weight, arguments


@pytest.mark.parametrize("leaf", ["multi_similarity", "contrastive", "triplet", "cross_entropy"])
@pytest.mark.parametrize("case", WEIGHING_ONLY)
def test_weights_are_constants(case: str, leaf: str) -> None:
    value, grad, weight, arguments = effective_weight(case, leaf)
    assert (weight < 1).any()
    embeddings = arguments["embeddings"]
    per_sample = per_sample_loss(LEAVES[leaf](), embeddings, arguments["labels"])
    expected = (weight.float() * per_sample).mean()
    if CASES[case].term is not None:
        expected = expected + CASES[case].term(arguments, weight.float())
    torch.testing.assert_close(value, expected)
    if CASES[case].weighs_pairs and leaf == "contrastive":
        return  # the terms of an anchor have different weights
    (wanted,) = torch.autograd.grad(expected, embeddings)
    torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("case", CASES)
def test_decisions_and_state_are_detached_and_proxies_train(case: str, device: str) -> None:
    arguments = make_batch(device=device)
    wrapper = build(case)
    wrapper(**arguments).backward()
    assert arguments["embeddings"].grad.isfinite().all()
    for each in chain(wrapper):
        for name, value in vars(each.decision).items():
            if value is not None:
                assert not value.requires_grad, name
                assert value.device == arguments["embeddings"].device, name
        for proxies in each.own_parameters():
            assert proxies.grad.device == arguments["embeddings"].device
            assert proxies.grad.abs().sum() > 0
    assert not any(buffer.requires_grad for buffer in wrapper.buffers())


@pytest.mark.parametrize("confidence_loss", [losses.ProxyNCALoss, losses.NormalizedSoftmaxLoss])
def test_proxies_get_exactly_the_gradient_of_their_own_loss(
    confidence_loss: type[torch.nn.Module],
) -> None:
    arguments = make_batch()
    torch.manual_seed(1)
    proxies = confidence_loss(CLASSES, WIDTH)
    wrapper = ConfidenceWeightedLoss(losses.MultiSimilarityLoss(), proxies, lam=0.1)
    wrapper(**arguments).backward()
    (got,) = [p.grad for p in proxies.parameters()]
    expected = proxies(arguments["embeddings"].detach(), arguments["labels"])
    (wanted,) = torch.autograd.grad(expected, list(proxies.parameters()))
    torch.testing.assert_close(got, wanted)
    assert wanted.abs().sum() > 0


def test_training_the_proxies_moves_neither_value_nor_embeddings() -> None:
    def run(frozen: bool) -> tuple[Tensor, Tensor]:
        arguments = make_batch()
        wrapper = build("confidence")
        wrapper.confidence_loss.requires_grad_(not frozen)
        value = wrapper(**arguments)
        value.backward()
        return value.detach(), arguments["embeddings"].grad

    for mine, other in zip(run(frozen=False), run(frozen=True), strict=True):
        assert torch.equal(mine, other)


def test_judging_by_the_training_loss_trains_its_proxies_once() -> None:
    """Table 1's variant: the loss is its own judge, and no second gradient reaches its proxies."""
    arguments = make_batch()
    torch.manual_seed(1)
    loss = losses.ProxyNCALoss(CLASSES, WIDTH)
    wrapper = ConfidenceWeightedLoss(loss, loss, lam=0.1)
    wrapper(**arguments).backward()
    per_sample = per_sample_loss(loss, arguments["embeddings"], arguments["labels"])
    expected = (wrapper.decision.weight.float() * per_sample).mean()
    (wanted,) = torch.autograd.grad(expected, [loss.proxies])
    torch.testing.assert_close(loss.proxies.grad, wanted)
    assert len(wrapper.parameter_groups(1e-3)) == 1


@pytest.mark.parametrize("case", CASES)
def test_no_grad_works(case: str) -> None:
    expected = build(case)(**make_batch()).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with naming(mode.__name__):
            with mode():
                value = build(case)(**make_batch())
            assert not value.requires_grad
            torch.testing.assert_close(value.clone(), expected)


@pytest.mark.parametrize("case", CASES)
def test_a_pass_without_gradients_leaves_no_trace(case: str) -> None:
    """A sanity check of the validation loop, or a validation in train mode; also as first call."""
    for mode in (torch.no_grad, torch.inference_mode):
        wrapper, twin = build(case), build(case)
        for step in range(5):
            before = state_of(wrapper)
            with mode():
                wrapper(**make_batch(seed=100 + step))
            with naming(f"{mode.__name__}, step {step}"):
                assert_same_state(before, wrapper)
                value = wrapper(**make_batch(seed=step))
                value.backward()
                assert_equal(value, twin(**make_batch(seed=step)))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_call_that_comes_again_in_the_backward_pass(case: str, reentrant: bool) -> None:
    """``torch.utils.checkpoint``: the gradient and the state are those of one call, or it raises.

    The first call of a reentrant one has no graph, and writes nothing.
    """
    once, again = build(case), build(case)
    stateful = any(type(each).commit is not LossWrapper.commit for each in chain(once))
    for seed in range(4):
        arguments = make_batch(seed=seed)
        torch.manual_seed(seed)
        once(**arguments).backward()
        gradient, embeddings = arguments["embeddings"].grad, make_batch(seed=seed)["embeddings"]
        rest = {name: value for name, value in arguments.items() if name != "embeddings"}
        torch.manual_seed(seed)
        value = checkpoint(partial(again, **rest), embeddings, use_reentrant=reentrant)
        if stateful and not reentrant:
            with pytest.raises(RuntimeError, match="called a second time, in the backward pass"):
                value.backward()
            return
        value.backward()
        with naming(f"step {seed}"):
            assert_equal(embeddings.grad, gradient)
            assert_same_state(state_of(once), again)


@pytest.mark.parametrize("case", CASES)
def test_an_embedding_of_zeros_is_no_worse_than_for_the_plain_loss(case: str) -> None:
    arguments = make_batch()
    rows = arguments["embeddings"].detach().clone()
    rows[2] = 0
    plain, wrapped = rows.clone().requires_grad_(), rows.requires_grad_()
    LEAVES["multi_similarity"]()(plain, arguments["labels"]).backward()
    build(case)(**{**arguments, "embeddings": wrapped}).backward()
    assert plain.grad.isfinite().all()
    assert wrapped.grad.isfinite().all()
    assert wrapped.grad[2].abs().max() < 1e3 * plain.grad[2].abs().max().clamp_min(1e12)


@pytest.mark.parametrize("case", CASES)
def test_labels_and_weights_made_in_inference_mode(case: str) -> None:
    arguments, wrapper = make_batch(), build(case)
    with torch.inference_mode():
        labels, weight = arguments["labels"].clone(), torch.ones(24)
    weights = {"sample_weight": weight} if CASES[case].weighs else {}
    for _ in range(2):
        wrapper(**{**arguments, "labels": labels}, **weights).backward()
    assert arguments["embeddings"].grad.isfinite().all()
