"""A training step with a wrapper inside can be given to ``torch.compile``.

The graph breaks once, around the wrapper, which runs as without a compiler: it asks for values, and
state changes with every step, which would be compiled anew each time. The equations themselves are
compiled in one graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    WIDTH,
    assert_equal,
    assert_same_state,
    build,
    leaf_for,
    make_batch,
    state_of,
)
from torch import Tensor, nn
from torch._dynamo.utils import counters

from noisydml import LabelAudit

STEPS = 6

# torch's compiler looks at it on its way, and hides the warning, unless it is an error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(autouse=True)
def _guards_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does, and flushes the caches before, each time that it has compiled something."""
    guards = "torch._dynamo.guards.profile_guard_manager"
    monkeypatch.setattr(guards, lambda *_: 0.0, raising=False)


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def frames() -> int:
    """How often something has been compiled."""
    return int(counters["frames"]["total"])


def trained(case: str, compiled: bool, audit: bool = False) -> tuple[Any, Tensor, list[int]]:
    """The wrapper after some steps, their losses, and what was compiled by the end of each."""
    wrapper, network = build(case, leaf_for(case, "multi_similarity")), nn.Linear(WIDTH, WIDTH)
    audited = LabelAudit(wrapper, 60) if audit else None

    def step(features: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        return 2 * wrapper(network(features) + features, labels, sample_ids=ids)

    run = torch.compile(step, backend="eager") if compiled else step
    optimizer = torch.optim.SGD([*network.parameters(), *wrapper.parameters()], lr=0.01)
    values, compilations = [], []
    for seed in range(STEPS):
        batch = make_batch(seed=seed)
        value = run(batch["embeddings"].detach(), batch["labels"], batch["sample_ids"])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
        compilations.append(frames())
    if audited is not None:
        assert len(audited.result().given_labels) == 60
    return wrapper, torch.stack(values), compilations


def cases() -> list[Any]:
    """Those of one wrapper, and the nests, which take longer together."""
    slow = pytest.mark.slow
    return [pytest.param(case, marks=slow if "(" in case else ()) for case in CASES]


@pytest.mark.parametrize("case", cases())
def test_a_step_is_compiled_once_and_breaks_around_the_wrapper(case: str) -> None:
    expected, losses, _ = trained(case, compiled=False)
    wrapper, values, compilations = trained(case, compiled=True)
    assert compilations[0] == compilations[-1] > 0  # nothing is compiled after the first step
    assert counters["stats"]["unique_graphs"] == 2  # before the wrapper and after it
    assert_equal(values, losses)
    assert_same_state(state_of(expected), wrapper)


@pytest.mark.parametrize("case", ["knn", "selected(prism)"])
def test_an_audited_step_is_compiled_once(case: str) -> None:
    _, _, compilations = trained(case, compiled=True, audit=True)
    assert compilations[0] == compilations[-1]
