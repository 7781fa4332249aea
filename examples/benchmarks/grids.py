"""The runs behind docs/results.md, the most telling ones first."""

from __future__ import annotations

Cell = tuple[str, str, str, float]  # loss, method, noise, rate

MS = "multi-similarity"
HALF = ("uniform", 0.5)
NOISES = [HALF, ("none", 0.0), ("pair_flip", 0.5), ("semantic", 0.5), ("small_cluster", 0.25),
          ("uniform", 0.2)]  # fmt: skip
FILTERS = ["PRISMFilter", "KNNDenoiser (0.25)"]


def omniglot() -> list[Cell]:
    cells: list[Cell] = []
    for noise in NOISES:
        ceiling = ["GroundTruthFilter"] if noise[1] else []
        cells += [(MS, method, *noise) for method in ["plain", *ceiling, *FILTERS]]
    others = ["PRISMFilter (rate given)", "KNNDenoiser", "KNNDenoiser (0.25, refreshed)",
              "SmallLossFilter (rate given)", "ConfidenceWeightedLoss",
              "SelectedInteractions (KNN)", "SuperLoss"]  # fmt: skip
    cells += [(MS, method, *HALF) for method in others]
    for loss in ("SoftTriple", "SupCon", "contrastive + memory"):
        cells += [(loss, method, *HALF) for method in ("plain", "GroundTruthFilter", *FILTERS)]
    cells += [("SupCon (0.5)", "TITAN", *HALF)]
    return cells


def mnist() -> list[Cell]:
    methods = ["plain", "GroundTruthFilter", "KNNDenoiser (counts)", "PRISMFilter (rate given)",
               "KNNDenoiser", "PRISMFilter", "ConfidenceWeightedLoss"]  # fmt: skip
    return [
        (loss, method, "uniform", rate)
        for rate in (0.5, 0.2, 0.1)
        for loss in ("MS", "ST", "SCAF")
        for method in methods
    ]


def cifar100() -> list[Cell]:
    noises = [("semantic", 0.5), ("uniform", 0.5)]
    clean = [(MS, "plain", "none", 0.0)]
    return clean + [
        (MS, method, *noise)
        for noise in noises
        for method in ["plain", "GroundTruthFilter", *FILTERS]
    ]


GRIDS = {"omniglot": omniglot(), "mnist": mnist(), "cifar100": cifar100()}
