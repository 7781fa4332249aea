"""Row-wise divergence of visual from language similarities (PLG, ProcSim's regulariser)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from noisydml.functional.checks import (
    require_floating,
    require_integer,
    require_number,
    require_positive,
)
from noisydml.functional.products import affine, unit_rows

Direction = Literal["backward", "forward"]
SameClass = Literal["fill", "diagonal", "keep"]


def language_guidance(
    embeddings: Tensor,
    language: Tensor,
    labels: Tensor | None = None,
    *,
    direction: Direction = "backward",
    temperature: float = 1.0,
    shift: float = 1.0,
    same_class: SameClass = "fill",
) -> Tensor:
    r"""How far each sample's similarities to the batch are from what language says (PLG).

    With :math:`S_{ij}` the cosine of embeddings i and j, :math:`L_{ij}` the mean over k of the
    cosines of their k-th language embeddings plus ``shift``, and :math:`p_i, q_i` the softmax of
    row i of :math:`S/T` and :math:`L/T`, the result is :math:`T^2\, KL(p_i \| q_i)`: the
    :math:`\ell_i^{SSL}` of ProcSim's Eq. 4. The defaults are those of the published code of Roth
    et al., Integrating Language Guidance into Vision-based Deep Metric Learning, CVPR 2022.

    Args:
        embeddings: (B, D) floating point; normalised here.
        language: (B, E), or (B, k, E) for k pseudo-classes per sample, floating point; normalised
            here. No gradient reaches it.
        labels: (B,) integers; needed for ``same_class="fill"``.
        direction: ``"backward"``, or ``"forward"`` for :math:`KL(q_i \| p_i)`.
        temperature: T, finite and above 0.
        shift: added to the language similarities, finite.
        same_class: ``"fill"``: pairs of equal label, a sample with itself included, count as
            ``1 + shift`` in both matrices. ``"diagonal"``: only a sample with itself, so that no
            label is read. ``"keep"``: nothing is replaced.

    Returns:
        (B,) divergences, of which the published loss is the mean, in the dtype of the embeddings
        and float32 at least; differentiable in the embeddings. No transfer to the host.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes do not fit, a setting is out of range, or ``labels`` is missing.

    Example:
        >>> import torch
        >>> from noisydml.functional import language_guidance
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> language = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> language_guidance(embeddings, language, labels=torch.tensor([0, 1, 2]))
        tensor([0.3029, 0.2743, 0.0538])
    """
    require_floating("embeddings", embeddings, ndim=2)
    check_settings(language, direction, temperature, shift, same_class)
    if len(language) != len(embeddings):
        raise ValueError(
            f"language must have {len(embeddings)} rows, one per embedding, got {len(language)}"
        )
    if labels is not None:
        require_integer("labels", labels, len(embeddings))
    elif same_class == "fill":
        raise ValueError("same_class='fill' needs labels; without them, give 'diagonal' or 'keep'")

    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    visual = unit_rows(embeddings.to(dtype))
    visual = affine(visual, visual)  # (B, B)
    # The mean of k matrices of cosines is one product: of the k unit vectors of a sample in a row.
    meaning = unit_rows(language.detach().to(dtype))
    parts = meaning.shape[1] if meaning.ndim == 3 else 1
    meaning = meaning.flatten(1) / math.sqrt(parts)  # (B, k E)
    meaning = affine(meaning, meaning) + shift
    if same_class != "keep":
        of_class = torch.arange(len(visual), device=visual.device)
        if same_class == "fill" and labels is not None:
            of_class = labels
        same = of_class.unsqueeze(0) == of_class.unsqueeze(1)  # (B, B)
        visual = torch.where(same, 1 + shift, visual)
        meaning = torch.where(same, 1 + shift, meaning)
    log_p = F.log_softmax(visual / temperature, dim=1)
    log_q = F.log_softmax(meaning / temperature, dim=1)
    if direction == "forward":
        log_p, log_q = log_q, log_p
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=1)


def check_settings(
    language: Tensor, direction: object, temperature: float, shift: float, same_class: object
) -> None:
    """Raise unless the table and the settings of :func:`language_guidance` are possible ones."""
    require_floating("language", language)
    if language.ndim not in (2, 3):
        raise ValueError(
            "language must have 2 or 3 dimensions, (N, E) or (N, k, E), "
            f"got shape {tuple(language.shape)}"
        )
    if direction not in ("backward", "forward"):
        raise ValueError(f"direction must be 'backward' or 'forward', got {direction!r}")
    require_positive("temperature", temperature)
    require_number("shift", shift)
    if not math.isfinite(shift):
        raise ValueError(f"shift must be finite, got {shift}")
    if same_class not in ("fill", "diagonal", "keep"):
        raise ValueError(f"same_class must be 'fill', 'diagonal' or 'keep', got {same_class!r}")
