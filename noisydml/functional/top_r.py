"""The threshold below which a given share of the samples lies (PRISM), and that share itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisydml.functional.checks import require_floating, require_number, require_vector


def top_r_threshold(
    probabilities: Tensor, noise_rate: float | Tensor, known: Tensor | None = None
) -> Tensor:
    r"""The :math:`\lfloor R n \rfloor`-th smallest probability: what is above it is kept (TRM).

    Args:
        probabilities: (B,) floating point.
        noise_rate: :math:`R`, a number in ``[0, 1]``, or a 0-dim tensor.
        known: (B,) bool, the n samples that take part; None for all. Samples of a class that the
            memory does not hold have probability 1 without evidence and must stay out, or they
            would push the quantile up.

    Returns:
        0-dim float64 tensor; ``-inf``, which drops nobody, where :math:`\lfloor R n \rfloor` is 0.
        No transfer to the host.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import top_r_threshold
        >>> top_r_threshold(torch.tensor([0.4, 0.1, 0.3, 0.2]), noise_rate=0.5)
        tensor(0.2000, dtype=torch.float64)
    """
    require_floating("probabilities", probabilities, ndim=1)
    size = len(probabilities)
    if not isinstance(noise_rate, Tensor):
        require_number("noise_rate", noise_rate)
        if not 0 <= noise_rate <= 1:
            raise ValueError(f"noise_rate must be in [0, 1], got {noise_rate}")
    ordered = probabilities.double()
    n: int | Tensor = size
    if known is not None:
        require_vector("known", known, size, "probability")
        ordered = torch.where(known, ordered, math.inf)
        n = known.sum().double()  # of an integer, the product would be in single precision
    # With -inf in front the k-th smallest has the index k, from 0 on.
    ordered = torch.nn.functional.pad(ordered.sort().values, (1, 0), value=-math.inf)
    # A product that a rounding error keeps below a whole number is that number: 0.29 * 100.
    drops = torch.as_tensor(noise_rate * n + 1e-9, device=ordered.device).long()
    return ordered.gather(0, drops.reshape(1)).squeeze(0)


def low_rank_counts(
    similarities: Tensor, own: Tensor, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""How many labels rank in the lower half of the classes, and how many would if all were wrong.

    Their ratio estimates the share of wrong labels. A wrong label says nothing of its sample, so
    that the rank of the given class among the others is uniform; a right label ranks near the
    top. Hence the lower half of the ranks holds half of the wrong labels and next to none of the
    right ones: Storey's estimate of the proportion of true null hypotheses, at
    :math:`\lambda = 1/2`. Labels that are wrong *and* similar to the right ones, such as a class's
    neighbour in a hierarchy, rank high and are not counted: the estimate is a lower bound then.

    Args:
        similarities: (B, C) floating point, of each sample with each class; ``-inf`` for classes
            that are not there, for all samples alike. Only their order counts.
        own: (B,) the similarity to the class of each sample's label, from
            :func:`~noisydml.functional.own_similarity`.
        counted: (B,) bool, the samples that take part; None for all.

    Returns:
        Two 0-dim float64 tensors, to be summed over batches before they are divided. The middle
        one of an odd number of ranks counts half. Samples whose own class is not there, or is the
        only one, count in neither. No transfer to the host.

    References:
        Storey, A direct approach to false discovery rates, JRSS B 2002.

    Example:
        >>> import torch
        >>> from noisydml.functional import low_rank_counts, own_similarity
        >>> similarities = torch.eye(8) - torch.arange(8) / 100
        >>> labels = torch.tensor([0, 1, 2, 3, 4, 5, 0, 6])  # the last two are wrong
        >>> found, expected = low_rank_counts(similarities, own_similarity(similarities, labels))
        >>> found / expected
        tensor(0.2500, dtype=torch.float64)
    """
    require_floating("similarities", similarities, ndim=2)
    require_floating("own", own, ndim=1)
    require_vector("own", own, len(similarities), "row of similarities")
    classes = similarities.narrow(0, 0, min(1, len(similarities))) > -math.inf
    others = classes.sum() - 1
    known = (own > -math.inf) & (others > 0)
    if counted is not None:
        require_vector("counted", counted, len(similarities), "row of similarities")
        known = known & counted
    # How many classes are above, 0 where the own is the nearest: a wrong label has 1 to K, the
    # right class being one of them. A sum of floats is several times as fast as one of bools, and
    # exact up to 2^24 classes.
    dtype = torch.promote_types(similarities.dtype, torch.float32)
    higher = torch.empty_like(similarities, dtype=dtype)
    above = torch.gt(similarities, own.unsqueeze(1), out=higher).sum(dim=1)
    low = torch.heaviside(above - (others + 1) / 2, above.new_full((), 0.5))
    return (low * known).sum().double(), known.sum().double() / 2
