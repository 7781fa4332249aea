"""The running mean of a loss over all batches so far (SuperLoss' threshold)."""

import torch
from torch import Tensor

from noisydml.functional.checks import require_decay, require_floating


def running_mean(mean: Tensor, count: Tensor, values: Tensor, decay: float | None = 0.9) -> Tensor:
    r"""Running mean after one more batch.

    With ``decay`` d it is the exponential moving average
    :math:`m \leftarrow d\, m + (1 - d)\, \overline{values}`: **d is the weight of the past**, as
    in ``torch.optim.swa_utils`` and unlike the momentum of batch norm. With ``None`` it is the
    plain mean over the batches seen. The first batch sets it to its own mean; what counts as
    first is ``count``, so a mean that happens to be 0 is a mean like any other.

    Args:
        mean: 0-dim float tensor, the mean so far; any value while ``count`` is 0.
        count: 0-dim integer tensor, the number of batches it has seen.
        values: (B,) losses of this batch, B >= 1.
        decay: weight of the past, in ``[0, 1)``, or None.

    Returns:
        0-dim tensor of the dtype of ``mean``. Nothing is changed in place; there is no transfer
        to the host.

    Raises:
        TypeError: if ``mean`` or ``values`` is not a floating-point tensor.
        ValueError: if ``values`` has no entries or not one dimension, or ``decay`` is out of range.

    Example:
        >>> import torch
        >>> from noisydml.functional import running_mean
        >>> mean, count = torch.zeros(()), torch.tensor(0)
        >>> mean = running_mean(mean, count, torch.tensor([1.0, 3.0]))
        >>> running_mean(mean, count + 1, torch.tensor([4.0, 4.0]), decay=0.75)
        tensor(2.5000)
    """
    require_floating("mean", mean, ndim=0)
    require_floating("values", values, ndim=1)
    if len(values) == 0:
        raise ValueError("values must have at least one entry, got none")
    require_decay(decay)
    batch_mean = values.double().mean()
    past = count.double() / (count + 1) if decay is None else decay
    # Where nothing is past, the old value must not enter, not even as 0 * nan.
    updated = torch.where(count == 0, batch_mean, past * mean.double() + (1 - past) * batch_mean)
    return updated.to(mean.dtype)
