"""Pair flip: every class is mistaken for the next."""

from __future__ import annotations

import numpy as np

from noisydml.noise import pair_flip


def test_the_next_class_and_from_the_last_the_first() -> None:
    labels = np.tile([3, 5, 9], 40)
    noisy = pair_flip(labels, 0.4)
    following = {3: 5, 5: 9, 9: 3}
    wrong = noisy.is_noisy
    assert noisy.labels[wrong].tolist() == [following[x] for x in labels[wrong]]
    expected = [[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.4, 0.0, 0.6]]
    np.testing.assert_allclose(noisy.transition_matrix(), expected)


def test_frozen() -> None:
    assert (
        "".join(map(str, pair_flip(np.arange(20) % 4, 0.3, seed=7).labels))
        == "01200133023312230123"
    )
