"""A judge that is done three times as soon, for tests that compare judgements with each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from noisydml.memory import judge


@contextmanager
def few_held_out() -> Iterator[None]:
    """It holds out two fifths of 60 labels, and one of 120 or more, where it would all five.

    The least is 16 labels, of which anything follows.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "ASKED", 24)
        yield
