"""The examples in the docstrings of the package."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import noisydml
from noisydml import plot

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


# What others make, or what the user derives from, is shown where it is used.
SHOWN_ELSEWHERE = {
    "Decision",
    "Filter",
    "LabelIssues",
    "LossWrapper",
    "Regularizer",
    "WordNetMatches",
}
PUBLIC = [
    getattr(room, name)
    for room in (noisydml, noisydml.functional, noisydml.noise)
    for name in room.__all__
    if name not in SHOWN_ELSEWHERE and callable(getattr(room, name))
]
FIGURES = [plot.contact_sheet, plot.hierarchy, plot.noise_rate, plot.score_histogram]


@pytest.mark.parametrize("public", PUBLIC + FIGURES, ids=lambda public: public.__name__)
def test_public_names_have_an_example(public: object) -> None:
    assert any(test.examples for test in doctest.DocTestFinder(recurse=False).find(public))
