"""Figures of what is distrusted; needs matplotlib, the extra ``plot``.

Functions take the axes to draw on, or make some, and return them; nothing is shown or saved.
Imported by itself: ``from noisydml import plot``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisydml.audit.issues import LabelIssues
from noisydml.audit.page import ClassNames, unique_names
from noisydml.audit.pictures import as_pixels, file_of, item_getter, of_sample
from noisydml.functional.checks import require_count
from noisydml.functional.extras import optional
from noisydml.noise import ClassHierarchy
from noisydml.wrappers.decision import Decision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def score_histogram(
    scores: Any,
    *,
    threshold: Any = None,
    is_noisy: Any = None,
    bins: int = 30,
    ax: Axes | None = None,
) -> Axes:
    """How the scores are distributed, and where the threshold divides them.

    Args:
        scores: (N,) numbers, or what has them: a :class:`~noisydml.Decision`, whose threshold is
            drawn, too, or :class:`~noisydml.LabelIssues`. NaN (never judged) is left out.
        threshold: a number, in place of the decision's; not drawn if it is infinite.
        is_noisy: (N,) bool, where it is known which labels are wrong: a histogram for each kind.
        bins: number of bars between the least and the largest score.
        ax: axes to draw on and return; by default those of a new figure.

    Raises:
        ImportError: without matplotlib.
        ValueError: for a decision without scores, or an ``is_noisy`` of another length or kind.

    Example:
        >>> import torch
        >>> from noisydml import plot
        >>> scores, wrong = torch.tensor([0.9, 0.8, 0.1, 0.7]), torch.tensor([0, 0, 1, 0]).bool()
        >>> ax = plot.score_histogram(scores, threshold=0.5, is_noisy=wrong)
        >>> ax.get_xlabel()
        'score (higher is cleaner)'
    """
    require_count("bins", bins)
    if isinstance(scores, Decision):
        if scores.score is None:
            raise ValueError("scores must be a decision that has some, got one without")
        threshold = scores.threshold if threshold is None else threshold
    if isinstance(scores, (Decision, LabelIssues)):
        scores = scores.score
    values = _array(scores, float)
    if values.ndim != 1:
        raise ValueError(f"scores must have 1 dimension, got shape {values.shape}")
    wrong = np.zeros(len(values), bool) if is_noisy is None else _mask(is_noisy)
    if wrong.shape != values.shape:
        raise ValueError(f"is_noisy must have shape {values.shape}, got {wrong.shape}")
    ax = _axes(ax)
    known = np.isfinite(values)
    edges = _edges(values[known], bins)
    if is_noisy is None:
        ax.hist(values[known], edges)
    else:
        ax.hist(values[known & ~wrong], edges, alpha=0.6, label="right labels")
        ax.hist(values[known & wrong], edges, alpha=0.6, label="wrong labels")
    limit = np.nan if threshold is None else float(threshold)
    if np.isfinite(limit):
        ax.axvline(limit, color="black", linestyle="--", label=f"threshold {limit:.3g}")
    if is_noisy is not None or np.isfinite(limit):
        ax.legend()
    ax.set(xlabel="score (higher is cleaner)", ylabel="samples")
    return ax


def noise_rate(
    rates: Iterable[Any],
    *,
    true_rate: float | None = None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The noise rate that a wrapper goes by, over the steps or epochs.

    Args:
        rates: one of each step: a number, a 0-dim tensor, or a :class:`~noisydml.Decision`; None
            and decisions without a rate leave a gap.
        true_rate: drawn as a line, where it is known.
        label: of the curve in the legend.
        ax: axes to draw on and return; by default those of a new figure.

    Raises:
        ImportError: without matplotlib.

    Example:
        >>> from noisydml import plot
        >>> ax = plot.noise_rate([None, 0.4, 0.25, 0.21], true_rate=0.2, label="PRISMFilter")
        >>> len(ax.get_lines())
        2
    """
    found = [rate.noise_rate if isinstance(rate, Decision) else rate for rate in rates]
    values = [np.nan if rate is None else float(rate) for rate in found]
    ax = _axes(ax)
    ax.plot(range(1, len(values) + 1), values, label=label)
    if true_rate is not None:
        ax.axhline(float(true_rate), color="black", linestyle="--", label="true rate")
    if label is not None or true_rate is not None:
        ax.legend()
    ax.set(xlabel="step", ylabel="noise rate", ylim=(0, 1))
    return ax


def contact_sheet(
    issues: LabelIssues,
    images: Any,
    *,
    class_names: ClassNames | None = None,
    rows: int = 5,
    columns: int = 8,
    title: str = "The most suspicious labels: given → suggested",
) -> Figure:
    """A new figure with the most suspicious samples, their given and their suggested labels.

    Args:
        issues: of :func:`~noisydml.find_label_issues` or :class:`~noisydml.LabelAudit`.
        images: as :meth:`noisydml.LabelIssues.to_html` takes them: pictures of all samples, their
            paths, or a callable from a sample's index to one.
        class_names: from labels to names, a mapping or a sequence.
        rows: of pictures, at least 1.
        columns: of pictures, at least 1.
        title: above the sheet.

    Raises:
        ImportError: without matplotlib.
        TypeError: if ``issues`` are none.
        TypeError, ValueError: for images that :meth:`noisydml.LabelIssues.to_html` refuses.

    Example:
        >>> import numpy as np, torch
        >>> from noisydml import find_label_issues, plot
        >>> embeddings, labels = torch.eye(3).repeat(10, 1), torch.arange(3).repeat(10)
        >>> labels[7] = 0
        >>> issues = find_label_issues(embeddings, labels)
        >>> figure = plot.contact_sheet(issues, np.zeros((30, 8, 8), np.uint8), rows=1, columns=4)
        >>> figure.axes[0].get_title()
        '0 → 1?'
    """
    if not isinstance(issues, LabelIssues):
        raise TypeError(f"issues must be LabelIssues, got {type(issues).__name__}")
    require_count("rows", rows)
    require_count("columns", columns)
    plt = _pyplot()
    picture = item_getter("images", images, len(issues.given_labels))
    worst = issues.issues[: rows * columns]
    both = [issues.given_labels, issues.suggested_labels]
    known = [labels[worst].tolist() for labels in both if labels is not None]
    pairs = list(zip(*known, strict=True))
    occur = {label for pair in pairs for label in pair if label >= 0}
    names = unique_names(class_names, occur, issues.classes)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.15 * columns, 1.3 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, sample, pair in zip(axes.flat, worst.tolist(), pairs, strict=False):
        with of_sample(sample):
            item = picture(sample)
            path = file_of(item)
            shown = as_pixels(item) if path is None else plt.imread(path)
        axis.imshow(shown, cmap="gray", vmin=0, vmax=255 if shown.dtype == np.uint8 else 1)
        axis.set_title(" → ".join(names[label] for label in pair if label >= 0) + "?", fontsize=9)
    figure.suptitle(title)
    return figure  # type: ignore[no-any-return]


def hierarchy(
    tree: ClassHierarchy, *, fold: bool = True, classes: bool = True, ax: Axes | None = None
) -> Axes:
    """A class hierarchy, from left to right: :meth:`noisydml.noise.ClassHierarchy.plot`.

    Args:
        tree: the hierarchy.
        fold: leave out nodes that have one child.
        classes: whether the classes are drawn, or only counted.
        ax: axes to draw on and return; by default those of a new figure.

    Raises:
        ImportError: without matplotlib.

    Example:
        >>> from noisydml import noise, plot
        >>> tree = noise.ClassHierarchy.from_dict({"animal": ["cat", "dog"], "car": None})
        >>> ax = plot.hierarchy(tree)
    """
    _pyplot()
    if not hasattr(tree, "plot"):
        wanted = "a ClassHierarchy, as ClassHierarchy.from_dict makes one"
        raise TypeError(f"tree must be {wanted}, got {type(tree).__name__}")
    return tree.plot(ax, fold=fold, classes=classes)


def _pyplot() -> Any:
    return optional("matplotlib.pyplot", "noisydml.plot", extra="plot")


def _axes(ax: Axes | None) -> Axes:
    return _pyplot().subplots()[1] if ax is None else ax


def _edges(values: NDArray[Any], bins: int) -> list[float]:
    """Of so many bars; of values that are equal but for rounding they are around these."""
    least, most = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    rounding = 1e-9 * max(abs(least), abs(most), 1.0)
    if most - least < rounding:
        least, most = least - 1e6 * rounding, most + 1e6 * rounding
    edges: list[float] = np.linspace(least, most, bins + 1).tolist()
    return edges


def _mask(values: Any) -> NDArray[np.bool_]:
    array = _array(values, object)
    if not np.isin(array, (False, True)).all():
        raise ValueError(f"is_noisy must hold bools, got {array.ravel()[:3].tolist()}, ...")
    return array.astype(np.bool_)


def _array(values: Any, dtype: type) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()  # NumPy has no bfloat16
    return np.asarray(values).astype(dtype)
