"""Small Cluster label noise: whole classes dissolve into small clusters (PRISM)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisydml.noise.checks import (
    Integers,
    Seed,
    generator,
    read_features,
    read_labels,
    require_count,
    require_flag,
    require_rate,
    require_two_classes,
)
from noisydml.noise.draws import below
from noisydml.noise.noisy_labels import NoisyLabels


def small_cluster(
    labels: Any,
    rate: float,
    features: Any,
    *,
    images_per_cluster: int = 2,
    normalize: bool = True,
    seed: Seed = 0,
) -> NoisyLabels:
    r"""Dissolve classes into small clusters of similar images, merged into other classes.

    Algorithm 1 of PRISM's supplement: a class is drawn uniformly, its images are clustered into
    :math:`\lfloor n / Z \rfloor` clusters by mini-batch k-means, and each cluster gets the label
    of another class that still has images, drawn uniformly. All images of the class are noise
    from then on. This is repeated until :math:`R N` images are. The class is gone: the noise is
    open-set, and a class transition matrix to undo it does not exist.

    Args:
        labels: (N,) integers, any values: list, numpy array or tensor.
        rate: R, the least share of wrong labels, in [0, 1]. The last class removed takes the share
            above it, by no more than that class's size.
        features: (N, D) finite real numbers, array or tensor. The paper takes those of a
            ResNet-18 trained on ImageNet.
        images_per_cluster: Z, the mean number of images in a cluster, at least 1.
        normalize: divide each row of ``features`` by its norm first, as the paper does.
        seed: integer of 0 or more, or a ``numpy.random.Generator``.

    Returns:
        Labels numbered anew, 0 to K - 1, as classes are gone; ``kept_classes`` says which class
        each number stands for, and ``vanished`` which are gone. A rate of 0 changes nothing but
        the numbers. With a rate that cannot be reached, such as 1, all classes end in one, the
        only one with right labels.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range or of another length than ``labels``, or there
            is one class only and ``rate`` is above 0.
        ImportError: if scikit-learn, which comes with pytorch-metric-learning, is missing.

    Notes:
        Images that have been moved into a class move again when that class goes: a removed class
        is empty, as the paper says (the number of classes decreases by one each time), though
        line 4 of the algorithm, read literally, would move only the images it began with.
        A class of fewer than 2 Z images is a single cluster. Mini-batch k-means may leave
        clusters empty, so that groups are larger than Z on average, and very uneven.
        Unlike the other models this one depends on more than ``seed``: what mini-batch k-means
        returns can differ between versions of scikit-learn and, by rounding, between platforms.
        Keep what was drawn with :meth:`NoisyLabels.save`.

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
    original = read_labels("labels", labels)
    require_rate("rate", rate)
    points = read_features(features, len(original))
    require_count("images_per_cluster", images_per_cluster, 1)
    require_flag("normalize", normalize)
    rng = generator(seed)
    classes, codes = np.unique(original, return_inverse=True)
    require_two_classes(rate, len(classes), len(original))
    if normalize:
        norms = np.linalg.norm(points, axis=1, keepdims=True)
        points = points / np.where(norms == 0, 1, norms)

    given = _dissolve(rng, codes, points, rate, len(classes), images_per_cluster)
    kept, reindexed = np.unique(given, return_inverse=True)
    return NoisyLabels(
        reindexed, given != codes, original, "small_cluster", rate, kept_classes=classes[kept]
    )


def _dissolve(
    rng: np.random.Generator,
    codes: Integers,
    points: NDArray[Any],
    rate: float,
    n_classes: int,
    images_per_cluster: int,
) -> Integers:
    """The loop of Algorithm 1, over the classes removed; its line numbers in the comments."""
    given: Integers = codes.copy()  # 1
    misplaced = np.zeros(len(codes), dtype=np.bool_)
    present = np.arange(n_classes)  # the non-empty classes
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
    return given


def _cluster(points: NDArray[Any], n_clusters: int, state: int) -> Integers:
    """(M,) clusters of the (M, D) points, in [0, n_clusters)."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    # The defaults of scikit-learn when the paper was written.
    kmeans = MiniBatchKMeans(n_clusters, batch_size=100, n_init=3, random_state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # images that are equal
        return np.asarray(kmeans.fit_predict(points), dtype=np.int64)
