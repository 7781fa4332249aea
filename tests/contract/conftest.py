"""Every promise is proven on the CPU and, where there is one, on a CUDA device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from contract.cases import REFUSED

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True, scope="module")
def _judged_soon(few_held_out: None) -> None:
    """Promises are of runs that are alike, whatever the judge says in them."""


@pytest.fixture(autouse=True)
def _count_refused(record_property: Any) -> Iterator[None]:
    """With the result of a test, how many bad inputs it has tried: workers send it along."""
    REFUSED.clear()
    yield
    for kind, number in REFUSED.items():
        record_property(f"refused {kind}", number)
