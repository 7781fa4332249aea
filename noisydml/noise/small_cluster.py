"""Small Cluster label noise: whole classes dissolve into small clusters (PRISM)."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisydml.functional.checks import require_count
from noisydml.noise.checks import UNLABELED, begin, read_features
from noisydml.noise.noisy_labels import NoisyLabels, put_back
from noisydml.noise.random import Integers, Seed, below


def small_cluster(
    labels: Any,
    rate: float,
    features: Any,
    *,
    images_per_cluster: int = 2,
    normalize: bool = True,
    seed: Seed = 0,
    spare: Any = None,
) -> NoisyLabels:
    r"""Dissolve classes into small clusters of similar images, merged into other classes.

    Algorithm 1 of PRISM's supplement: a class is drawn uniformly, its images are clustered into
    :math:`\lfloor n / Z \rfloor` clusters by mini-batch k-means, and each cluster gets the label
    of another class that still has images, drawn uniformly. All images of the class are noise
    from then on. This is repeated until :math:`R N` images are. Whole classes are gone: the noise
    is open-set, and a class transition matrix to undo it does not exist.

    Args:
        labels: (N,) integers, -1 for none: list, numpy array or tensor.
        rate: R, the least share of wrong labels, in [0, 1]; the class removed last may exceed it.
        features: (N, D) finite real numbers, array or tensor. The paper takes those of a
            ResNet-18 trained on ImageNet.
        images_per_cluster: Z, the mean number of images in a cluster, at least 1.
        normalize: divide each row of ``features`` by its norm first, as the paper does.
        seed: integer of 0 or more, or a ``numpy.random.Generator``.
        spare: (N,) bool, the rows to leave alone, such as those of a validation set; None for
            none. Neither they nor rows without a label count in ``rate`` or among the classes.

    Returns:
        Labels numbered anew, 0 to K - 1; ``kept_classes`` says which class each number stands for,
        and ``vanished`` which are gone. What a spared row names has a number, too; a row without a
        label stays -1. A rate of 0 changes nothing but the numbers. With a rate
        that cannot be reached, such as 1, all end in one class, the only one with right labels.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, ``features`` has not N rows, or there is one
            class only and a rate above 0.
        ImportError: if scikit-learn, which comes with pytorch-metric-learning, is missing.

    Notes:
        Images that have been moved into a class move again when that class goes. Mini-batch
        k-means may leave clusters empty, so that groups are larger than Z on average, and uneven.
        What it returns can differ between versions of scikit-learn and, by rounding, between
        platforms: keep what was drawn with :meth:`NoisyLabels.save`.

    References:
        Liu et al., Noise-resistant Deep Metric Learning with Ranking-based Instance Selection,
        CVPR 2021, section 4.1 and supplement, Algorithm 1.

    Example:
        >>> import numpy as np
        >>> from noisydml.noise import small_cluster
        >>> features = np.random.default_rng(0).normal(size=(40, 8))
        >>> noisy = small_cluster(np.repeat([10, 20, 30, 40], 10), 0.2, features)
        >>> noisy.vanished, noisy.kept_classes, noisy.rate
        (array([30]), array([10, 20, 40]), 0.25)
    """
    original, counted, classes, codes, rng = begin(labels, rate, seed, spare, normalize=normalize)
    points = read_features(features, len(original))[counted]
    require_count("images_per_cluster", images_per_cluster)
    if normalize:
        norms = np.linalg.norm(points, axis=1, keepdims=True)
        points = points / np.where(norms == 0, 1, norms)

    # The line numbers are those of Algorithm 1, as a loop over the classes removed.
    given: Integers = codes.copy()  # 1
    misplaced = np.zeros(len(codes), dtype=np.bool_)
    present = np.arange(len(classes))  # the non-empty classes
    wanted = (rate - 1e-9) * len(codes)  # 0.55 * 100 is more than 55
    while misplaced.sum() < wanted and len(present) > 1:  # 2
        drawn = below(rng, np.array([len(present)]))[0]  # 3
        members = np.flatnonzero(given == present[drawn])  # 4, with what was moved here
        n_clusters = max(1, len(members) // images_per_cluster)
        state = int(below(rng, np.array([2**31 - 1]))[0])
        clusters = _cluster(points[members], n_clusters, state)  # 5
        present = np.delete(present, drawn)
        targets = present[below(rng, np.full(n_clusters, len(present)))]  # 6-7
        given[members] = targets[clusters]  # 8-10
        misplaced[members] = True  # 12
    noisy = put_back(original, counted, classes[given], "small_cluster", rate)
    there = counted | (original != UNLABELED)
    labels = np.full_like(original, UNLABELED)
    kept, labels[there] = np.unique(noisy.labels[there], return_inverse=True)
    return replace(noisy, labels=labels, kept_classes=kept)


def _cluster(points: NDArray[Any], n_clusters: int, state: int) -> Integers:
    """(M,) clusters of the (M, D) points, in [0, n_clusters)."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    # The defaults of scikit-learn when the paper was written.
    kmeans = MiniBatchKMeans(n_clusters, batch_size=100, n_init=3, random_state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # images that are equal
        return np.asarray(kmeans.fit_predict(points), dtype=np.int64)
