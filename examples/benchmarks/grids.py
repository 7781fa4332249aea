"""The runs behind docs/results.md, the most telling ones first."""

from __future__ import annotations

Cell = tuple[str, str, str, float]  # loss, method, noise, rate

MS = "multi-similarity"
HALF = ("uniform", 0.5)
NOISES = [HALF, ("none", 0.0), ("semantic", 0.5), ("small_cluster", 0.25), ("pair_flip", 0.5),
          ("uniform", 0.2)]  # fmt: skip
FILTERS = ["PRISMFilter", "KNNDenoiser (0.25)"]
JUDGED, TRAINED = "robust (judged start)", "robust (trained start)"
PARTS = ("similarity loss", "clustering", "mixing", "refinement", "weights")


def omniglot() -> list[Cell]:
    cells: list[Cell] = []
    for noise in NOISES:
        ceiling = ["GroundTruthFilter"] if noise[1] else []
        cells += [(MS, method, *noise) for method in ["plain", *ceiling, *FILTERS, JUDGED]]
    others = ["MemoryRelabeler (KNN, 0.25)", "the same, nobody relabelled",
              "KNNDenoiser (0.25), no ids", "SmallLossFilter (rate given)",
              "ConfidenceWeightedLoss", "SuperLoss", "SelectedInteractions (KNN)",
              "PRISMFilter (rate given)", "PRISMFilter (rate given, T = 1)",
              "KNNDenoiser", "KNNDenoiser (0.25, refreshed)", "KNNDenoiser (refreshed)",
              "KNNDenoiser (counts)"]  # fmt: skip
    cells += [(MS, method, *HALF) for method in others]
    cells += [(MS, "MemoryRelabeler (KNN, 0.25)", *noise) for noise in NOISES[1:4]]
    cells += [(MS, "PRISMFilter (rate given)", *noise) for noise in NOISES[2:]]
    cells.append((MS, "KNNDenoiser (0.25, refreshed)", "none", 0.0))
    for loss in ("SoftTriple", "SupCon", "contrastive + memory"):
        cells += [(loss, method, *HALF) for method in ("plain", "GroundTruthFilter", *FILTERS)]
    cells += [(loss, "PRISMFilter (rate given)", *HALF) for loss in ("SoftTriple", "SupCon")]
    cells += [(loss, JUDGED, *HALF) for loss in ("SoftTriple", "SupCon", "contrastive + memory")]
    semantic = ("plain", "GroundTruthFilter", JUDGED)
    cells += [("SoftTriple", method, "semantic", 0.5) for method in semantic]
    cells.append(("contrastive + memory", "PRISMFilter (rate given, no warm-up)", *HALF))
    return cells + titan()


def titan() -> list[Cell]:
    """TITAN's Table 4."""
    parts = ["TITAN", *(f"TITAN without {part}" for part in PARTS), "plain"]
    alone = [f"{part} alone" for part in ("refinement", "mixing", "clustering")]
    read_literally = ["TITAN (weights: density)", "TITAN (normalize=False)"]
    cells = [("SupCon (0.5)", method, *HALF) for method in parts + read_literally]
    return cells + [("SupCon (0.5)", method, "pair_flip", 0.5) for method in parts + alone]


def mnist() -> list[Cell]:
    """N2D2's Table 2. An exact search among 60,000 takes ten times as long as the training."""
    methods = ["plain", "GroundTruthFilter", "PRISMFilter (rate given)", "PRISMFilter",
               "ConfidenceWeightedLoss", "KNNDenoiser (counts, IVF)"]  # fmt: skip
    cells = [
        (loss, method, "uniform", rate)
        for rate in (0.5, 0.2, 0.1)
        for loss in ("MS", "SCAF", "ST")
        for method in methods
    ]
    cells += [(loss, "KNNDenoiser (IVF)", *HALF) for loss in ("MS", "SCAF", "ST")]
    cells += [(loss, TRAINED, *HALF) for loss in ("MS", "SCAF", "ST")]
    cells += [("MS", TRAINED, "uniform", rate) for rate in (0.2, 0.1)]
    cells += [("MS", JUDGED, "uniform", rate) for rate in (0.5, 0.2, 0.1)]
    cells += [(loss, JUDGED, *HALF) for loss in ("SCAF", "ST")]
    return cells + [("MS", method, *HALF) for method in ("KNNDenoiser (counts)", "KNNDenoiser")]


def cifar100() -> list[Cell]:
    methods = ["plain", "GroundTruthFilter", JUDGED, TRAINED, *FILTERS]
    cells = [
        ("SupCon", method, kind, 0.5) for kind in ("semantic", "uniform") for method in methods
    ]
    return cells + [("SupCon", method, "none", 0.0) for method in ("plain", JUDGED, TRAINED)]


PRETRAINED = ["plain", "GroundTruthFilter", "PRISMFilter", "PRISMFilter (rate given)",
              "KNNDenoiser", "KNNDenoiser (judged start)", "ConfidenceWeightedLoss",
              "ConfidenceWeightedLoss and language", "TITAN", "robust", JUDGED]  # fmt: skip


def pretrained(noises: list[tuple[str, float]], told: list[str]) -> list[Cell]:
    """One grid for a pair loss and a proxy loss; ``told`` need wrong labels to be told of."""
    cells: list[Cell] = [(MS, "untrained", "none", 0.0)]
    for loss in (MS, "SoftTriple"):
        for noise, rate in noises:
            methods = PRETRAINED if rate else [m for m in PRETRAINED if m not in told]
            if noise == "published_clusters":  # a given label has no name of its own
                methods = [m for m in methods if not m.endswith("language")]
            cells += [(loss, method, noise, rate) for method in methods]
    return cells


TOLD = ["GroundTruthFilter", "PRISMFilter (rate given)"]
CARS = [("published", 0.5), ("none", 0.0), ("published", 0.2), ("published_clusters", 0.25),
        ("published", 0.1), ("published_clusters", 0.5)]  # fmt: skip
CIFAR = [*((kind, rate) for rate in (0.5, 0.2) for kind in ("uniform", "semantic", "pair_flip")),
         ("human", 0.22), ("none", 0.0)]  # fmt: skip
GRIDS = {
    "omniglot": omniglot(),
    "mnist": mnist(),
    "cifar100": cifar100(),
    "features_cars196": pretrained(CARS, TOLD),
    "features_cifar100": pretrained(CIFAR, TOLD),
    "cars196": pretrained(CARS, TOLD),
}
