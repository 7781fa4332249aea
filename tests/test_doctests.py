"""The examples in the docstrings of the package."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import noisydml
from noisydml import plot
from noisydml.memory import FeatureMemory

MODULES = ["noisydml"] + [
    module.name for module in pkgutil.walk_packages(noisydml.__path__, "noisydml.")
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    runner, report = doctest.DocTestRunner(), list[str]()
    for test in doctest.DocTestFinder().find(module):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize(
    "public",
    [
        noisydml.per_sample_loss,
        noisydml.decision_stats,
        noisydml.decision_summary,
        noisydml.LabelIssues.to_html,
        plot.contact_sheet,
        plot.hierarchy,
        plot.noise_rate,
        plot.score_histogram,
        noisydml.ConfidenceWeightedLoss,
        noisydml.GatheredLoss,
        noisydml.GroundTruthFilter,
        noisydml.LanguageGuidance,
        noisydml.RegularizedLoss,
        noisydml.SelectedInteractions,
        noisydml.SmallLossFilter,
        noisydml.SuperLoss,
        noisydml.PRISMFilter,
        FeatureMemory,
        *(getattr(noisydml.functional, name) for name in noisydml.functional.__all__),
        noisydml.noise.ClassHierarchy,
        noisydml.noise.NoisyLabels,
        noisydml.noise.class_frequency,
        noisydml.noise.match_wordnet,
        noisydml.noise.pair_flip,
        noisydml.noise.semantic,
        noisydml.noise.small_cluster,
        noisydml.noise.uniform,
    ],
    ids=lambda public: public.__name__,
)
def test_public_names_have_an_example(public: object) -> None:
    assert any(test.examples for test in doctest.DocTestFinder(recurse=False).find(public))
