"""Promise 1: a wrapper that trusts every sample is the wrapped loss, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    LEAVES,
    assert_equal,
    build,
    leaf_of,
    make_batch,
    naming,
    with_leaves,
)
from torch import Tensor, nn


def value_and_gradients(loss: Any, leaf: Any, arguments: dict[str, Any]) -> list[Tensor]:
    keywords = {name: arguments[name] for name in arguments if name == "sample_ids"}
    value = loss(arguments["embeddings"], arguments["labels"], **keywords)
    value = value.mean()  # of a plain callable's (B,)
    parameters = list(leaf.parameters()) if isinstance(leaf, nn.Module) else []
    wanted = [arguments["embeddings"], *parameters]
    return [value, *torch.autograd.grad(value, wanted, materialize_grads=True)]


def assert_identity(case: str, leaf: str, device: str, train: bool, **settings: Any) -> None:
    wrapper, bare = build(case, leaf, **settings).train(train).to(device), LEAVES[leaf]()
    if isinstance(bare, nn.Module):
        bare.load_state_dict(leaf_of(wrapper).state_dict())
        bare.to(device)
    for seed in range(3):
        arguments = make_batch(seed=seed, device=device)
        ours = value_and_gradients(wrapper, leaf_of(wrapper), arguments)
        del arguments["sample_ids"]
        theirs = value_and_gradients(bare, bare, arguments)
        for mine, other in zip(ours, theirs, strict=True):
            assert_equal(mine, other)
        assert wrapper.decision.keep.all()
        assert (wrapper.decision.weight == 1).all()


@pytest.mark.parametrize(("case", "leaf"), with_leaves(*LEAVES))
def test_in_eval_mode_and_while_every_sample_is_trusted(case: str, leaf: str, device: str) -> None:
    with naming("eval mode"):
        assert_identity(case, leaf, device, train=False)
    with naming("training"):
        assert_identity(case, leaf, device, train=True, trusting=True)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if not case.drops])
def test_unit_sample_weights(case: str, device: str) -> None:
    arguments = make_batch(device=device)
    wrapper = build(case, trusting=True)
    plain = wrapper(**arguments)
    weighted = wrapper(**arguments, sample_weight=torch.ones(24, device=device))
    assert_equal(plain, weighted)


@pytest.mark.parametrize("case", CASES)
def test_eval_mode_needs_no_ids_and_changes_nothing(case: str, device: str) -> None:
    wrapper = build(case).eval().to(device)
    before = {k: v.clone() for k, v in wrapper.named_buffers()}
    arguments = make_batch(device=device)
    wrapper(arguments["embeddings"], arguments["labels"])
    for name, value in wrapper.named_buffers():
        assert torch.equal(before[name], value), name
