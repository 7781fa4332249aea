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
    :math:`\ell_i^{SSL}` of ProcSim's Eq. 4 (section 3.5). All defaults are those of the published
    code of Roth et al., Integrating Language Guidance into Vision-based Deep Metric Learning,
    CVPR 2022, with which ProcSim was trained.

    Args:
        embeddings: (B, D) floating-point tensor; normalised here.
        language: (B, E), or (B, k, E) for k pseudo-classes per sample, floating point;
            normalised here. CLIP's *image* embeddings guide in the same way (ProcSim, appendix
            C). No gradient reaches it.
        labels: (B,) integers; needed for ``same_class="fill"``.
        direction: ``"backward"`` (published) for :math:`KL(p_i \| q_i)`, visual from language;
            ``"forward"`` for :math:`KL(q_i \| p_i)`. The names are those of the published code.
        temperature: T, finite and above 0; 1 as published.
        shift: added to the language similarities, finite; 1 as published.
        same_class: ``"fill"`` (published): pairs of equal label, a sample with itself included,
            count as ``1 + shift``, the most similar, in both matrices. ``"diagonal"``: only a
            sample with itself, so that no label is read, right or wrong. ``"keep"``: nothing is
            replaced.

    Returns:
        (B,) divergences, not negative but for rounding, in the dtype of the embeddings and in
        float32 at least; differentiable with respect to the embeddings. Their mean is the
        published loss.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes do not fit, a setting is out of range, or ``labels`` is missing.

    Notes:
        The mean of k matrices of cosines is one product: that of the k unit vectors of each
        sample, put in a row. So the k matrices are never formed. No transfer to the host.

    Example:
        >>> import torch
        >>> from noisydml.functional import language_guidance
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> language = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> language_guidance(embeddings, language, labels=torch.tensor([0, 1, 2]))
        tensor([0.3029, 0.2743, 0.0538])
    """
    _check(embeddings, language, labels, direction, temperature, shift, same_class)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    visual = F.normalize(embeddings.to(dtype))
    visual = visual @ visual.T  # (B, B)
    meaning = F.normalize(language.detach().to(dtype), dim=-1)
    parts = meaning.shape[1] if meaning.ndim == 3 else 1
    meaning = meaning.flatten(1) / math.sqrt(parts)  # (B, k E)
    meaning = meaning @ meaning.T + shift

    same = _same(labels, same_class, visual)
    if same is not None:
        visual = torch.where(same, 1 + shift, visual)
        meaning = torch.where(same, 1 + shift, meaning)
    log_p = F.log_softmax(visual / temperature, dim=1)
    log_q = F.log_softmax(meaning / temperature, dim=1)
    if direction == "backward":
        divergence = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    else:
        divergence = (log_q.exp() * (log_q - log_p)).sum(dim=1)
    return temperature**2 * divergence


def check_settings(direction: object, temperature: float, shift: float, same_class: object) -> None:
    """Raise unless the settings of :func:`language_guidance` are possible ones."""
    if direction not in ("backward", "forward"):
        raise ValueError(f"direction must be 'backward' or 'forward', got {direction!r}")
    require_positive("temperature", temperature)
    require_number("shift", shift)
    if not math.isfinite(shift):
        raise ValueError(f"shift must be finite, got {shift}")
    if same_class not in ("fill", "diagonal", "keep"):
        raise ValueError(f"same_class must be 'fill', 'diagonal' or 'keep', got {same_class!r}")


def _check(
    embeddings: Tensor,
    language: Tensor,
    labels: Tensor | None,
    direction: object,
    temperature: float,
    shift: float,
    same_class: object,
) -> None:
    require_floating("embeddings", embeddings, ndim=2)
    require_floating("language", language)
    if language.ndim not in (2, 3):
        raise ValueError(
            f"language must have 2 or 3 dimensions, (B, E) or (B, k, E), "
            f"got shape {tuple(language.shape)}"
        )
    if len(language) != len(embeddings):
        raise ValueError(
            f"language must have {len(embeddings)} rows, one per embedding, got {len(language)}"
        )
    check_settings(direction, temperature, shift, same_class)
    if labels is not None:
        require_integer("labels", labels, len(embeddings))
    elif same_class == "fill":
        raise ValueError("same_class='fill' needs labels; without them, give 'diagonal' or 'keep'")


def _same(labels: Tensor | None, same_class: SameClass, like: Tensor) -> Tensor | None:
    """(B, B) which pairs are replaced."""
    if same_class == "keep":
        return None
    rows = torch.arange(len(like), device=like.device)
    of_class = rows if same_class == "diagonal" or labels is None else labels
    return of_class.unsqueeze(0) == of_class.unsqueeze(1)
