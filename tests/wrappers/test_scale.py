"""Where directions are compared, the scale of the embeddings decides nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.cases import CASES, build, chain, leaf_for, make_batch, naming

from noisydml import find_label_issues

pytestmark = pytest.mark.usefixtures("few_held_out")

TINY, HUGE = 2.0**-46, 2.0**66  # about 1e-14 and 1e20; powers of two round nothing
# A loss of PML that judges sees embeddings as they are, whose lengths it cannot compute.
OWN_JUDGE = [case for case in CASES if "super_loss" not in case and case != "generic_confidence"]


def scaled(arguments: dict[str, Any], scale: float) -> dict[str, Any]:
    return {**arguments, "embeddings": (arguments["embeddings"].detach() * scale).requires_grad_()}


@pytest.mark.parametrize("scale", [TINY, HUGE])
@pytest.mark.parametrize("case", OWN_JUDGE)
def test_decisions_do_not_depend_on_the_scale(case: str, scale: float) -> None:
    leaf = leaf_for(case, "multi_similarity")
    plain, other = build(case, leaf), build(case, leaf)
    for seed in range(3):
        arguments = make_batch(seed=seed)
        plain(**arguments)
        if "mixer" in case and scale == HUGE:  # densities have a scale
            with pytest.raises(ValueError, match=r"embeddings must be at most 1e\+15"):
                other(**scaled(arguments, scale))
            return
        other(**scaled(arguments, scale))
        for one, same in zip(chain(plain), chain(other), strict=True):
            with naming(f"step {seed}, {type(one).__name__}"):
                assert torch.equal(one.decision.keep, same.decision.keep)
                torch.testing.assert_close(one.decision.weight, same.decision.weight)


def test_issues_do_not_depend_on_the_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(6).repeat(50)
    embeddings = torch.randn(6, 8, generator=generator)[true]
    embeddings = embeddings + 0.3 * torch.randn(300, 8, generator=generator)
    labels = torch.where(torch.arange(300) < 40, (true + 1) % 6, true)
    for metric in ("cosine", "euclidean"):
        expected = find_label_issues(embeddings, labels, metric=metric)  # type: ignore[arg-type]
        assert 30 < len(expected) < 50
        for scale in (TINY, HUGE):
            with naming(f"{metric}, {scale}"):
                found = find_label_issues(embeddings * scale, labels, metric=metric)  # type: ignore[arg-type]
                assert torch.equal(found.issues.sort().values, expected.issues.sort().values)
