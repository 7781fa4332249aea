"""Every equation that a step computes is one graph of ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from noisydml import functional

CLASSES, WIDTH = 5, 8

# What torch's compiler warns itself of.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")

# Of embeddings (B, D), labels (B,) and losses (B,).
EQUATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "class_similarity": lambda x, y, v: functional.class_similarity(x, x[:CLASSES], y[:CLASSES]),
    "class_similarity_pairs": lambda x, y, v: functional.class_similarity_pairs(x, x, y, CLASSES),
    "softmax_probability": lambda x, y, v: functional.softmax_probability(x, y),
    "own_similarity": lambda x, y, v: functional.own_similarity(x, y),
    "batch_positive": lambda x, y, v: functional.batch_positive(x, y),
    "low_rank_counts": lambda x, y, v: functional.low_rank_counts(x, v),
    "top_r_threshold": lambda x, y, v: functional.top_r_threshold(v, 0.3),
    "neighbor_weights": lambda x, y, v: functional.neighbor_weights(x.square(), 2.0),
    "neighbor_label_score": lambda x, y, v: functional.neighbor_label_score(x.long() % CLASSES, y),
    "proxy_nca": lambda x, y, v: functional.proxy_nca(x, y, x[:CLASSES]),
    "otsu_threshold": lambda x, y, v: functional.otsu_threshold(v),
    "gaussian_mixture_threshold": lambda x, y, v: functional.gaussian_mixture_threshold(v),
    "confidence": lambda x, y, v: functional.confidence(v, 0.4, 0.1),
    "lambertw": lambda x, y, v: functional.lambertw(v),
    "running_mean": lambda x, y, v: functional.running_mean(v[0], y[0], v),
    "forget_rate": lambda x, y, v: functional.forget_rate(y[3], 0.3, 10),
    "small_loss_threshold": lambda x, y, v: functional.small_loss_threshold(v, 0.3),
    "gaussian_log_density": lambda x, y, v: functional.gaussian_log_density(
        x, x[:CLASSES], x[:CLASSES].square() + 1
    ),
    "density_weights": lambda x, y, v: functional.density_weights(v),
    "clustering_loss": lambda x, y, v: functional.clustering_loss(x, y, x[:CLASSES]),
    "mix": lambda x, y, v: functional.mix(x, x.flip(0), v),
    "language_guidance": lambda x, y, v: functional.language_guidance(x, x.unsqueeze(1), y),
    "selected_interactions": lambda x, y, v: functional.selected_interactions(y, v > 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUATIONS)
def test_it_is_one_graph(name: str) -> None:
    torch.compiler.reset()
    equation = EQUATIONS[name]
    compiled = torch.compile(equation, backend="eager", fullgraph=True)
    for size in (24, 17):
        rows = torch.randn(size, WIDTH), torch.arange(size) % CLASSES, torch.rand(size)
        torch.testing.assert_close(compiled(*rows), equation(*rows), rtol=0, atol=0)
