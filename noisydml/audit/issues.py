"""Which labels are wrong: found in any embeddings, and the table that says so."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from noisydml.audit import page
from noisydml.audit.page import ClassNames
from noisydml.functional import neighbor_label_score, neighbor_weights
from noisydml.functional.checks import require_count, require_floating, require_integer
from noisydml.memory.index import Metric, NeighborIndex
from noisydml.memory.neighbors import Neighborhood

_BLOCK = 4096  # queries searched, and votes counted, at once
_SHARPNESS = 8.0  # of the weights of the votes; figures for this and the next in docs/audit.md
_ROUNDS = 6  # of votes; three leave half of 40 % wrong labels of two classes, more change little
_SHOWN = 8  # neighbours of an issue that are kept, to be looked at


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Labels that are most likely wrong, with the evidence; all tensors are on the CPU.

    Attributes:
        issues: (n,) int64, indices of the samples whose label is distrusted, the most suspicious
            first.
        score: (N,) float64 in [0, 1], higher is cleaner; NaN for samples never judged.
        given_labels: (N,) int64; -1 for samples never judged.
        suggested_labels: (N,) int64, what the evidence speaks for; None without suggestions.
        support: (N,) float64 in [0, 1], the share of the evidence for the suggested label; None
            without suggestions.
        noise_rate: the estimated share of wrong labels: that of distrusted ones.
        neighbors: (n, m) int64, for each issue the samples most like it, the nearest first; -1
            where there are fewer. None where they are not known: see :meth:`with_neighbors`.
    """

    issues: Tensor
    score: Tensor
    given_labels: Tensor
    suggested_labels: Tensor | None
    support: Tensor | None
    noise_rate: float
    neighbors: Tensor | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each issue, the most suspicious first."""
        columns = self._columns()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write :meth:`rows` as a table with a header, RFC 4180, numbers to four digits."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self._columns())
            writer.writerows(map(_words, self.rows()))

    def summary(self, top: int = 10) -> str:
        """The figures in words, and a table of the most suspicious labels.

        Args:
            top: how many rows the table has at most, at least 0.
        """
        require_count("top", top, least=0)
        rows = self.rows()[:top]
        first = (
            f"{len(self.issues)} of {int(self.score.isfinite().sum())} labels are most likely "
            f"wrong ({100 * self.noise_rate:.1f} %)."
        )
        table = [*map(list, rows[:1]), *map(_words, rows)]
        return "\n".join([first, *("  ".join(f"{cell:>15s}" for cell in row) for row in table)])

    def to_html(
        self,
        path: str | PathLike[str],
        *,
        images: Any = None,
        texts: Any = None,
        class_names: ClassNames | None = None,
        top: int | None = None,
        image_size: int = 128,
        title: str = "Labels to check",
    ) -> None:
        """Write a page on which the labels can be fixed: one file, for any browser, offline.

        It shows every issue with its neighbours, takes decisions by mouse or keyboard, and gives
        the corrected labels as a CSV file. "Fix the labels" in the documentation has more.

        Args:
            path: of the file.
            images: a picture for each of the N samples: an array or tensor (N, H, W) or
                (N, H, W, 3) of uint8, a sequence of such pictures or of paths of files, or a
                callable from a sample's index to one of these. Only those shown are asked for.
            texts: a text for each of the N samples: a sequence, or a callable from the index.
            class_names: a mapping or a sequence that names each label that occurs.
            top: how many issues are shown at most, the most suspicious; all by default.
            image_size: larger pictures are shrunk until their larger side has as many pixels.
                Files are taken as they are.
            title: of the page.

        Raises:
            TypeError: for pictures that are not uint8, or an argument of another type.
            ValueError: for another number of images or texts than N, pictures of another shape,
                files that are no pictures, a label without a name, or a bad number.

        Example:
            >>> import tempfile, torch
            >>> from noisydml import find_label_issues
            >>> embeddings, labels = torch.eye(3).repeat(10, 1), torch.arange(3).repeat(10)
            >>> labels[7] = 0
            >>> issues = find_label_issues(embeddings, labels)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     issues.to_html(f"{folder}/fix.html", class_names=["ant", "bee", "fly"])
        """
        if top is not None:
            require_count("top", top, least=0)
        rows = self.rows()[:top]
        near = [[]] * len(rows) if self.neighbors is None else self.neighbors[:top].tolist()
        labels = self.given_labels.tolist()
        page.write(path, rows, near, labels, images, texts, class_names, image_size, title)

    def with_neighbors(
        self, embeddings: Any, k: int = 8, *, metric: Metric = "cosine"
    ) -> LabelIssues:
        """These issues, each with the k samples that are nearest to it.

        Those of :func:`find_label_issues` have 8 already, those of a :class:`LabelAudit` none.

        Args:
            embeddings: (N, D) floating point, of all samples.
            k: number of neighbours, at least 1.
            metric: ``"cosine"`` or ``"euclidean"``.

        Raises:
            TypeError, ValueError: unless ``embeddings`` are N rows of finite floats.
        """
        size, got = len(self.given_labels), len(embeddings)
        if got != size:
            raise ValueError(f"embeddings must have {size} rows, one per sample, got {got}")
        one_class = torch.zeros_like(self.given_labels)  # nobody is left out for its label
        embeddings, one_class = _checked(embeddings, one_class)
        require_count("k", k)
        rows = self.issues.to(embeddings.device)
        found = _search(Neighborhood(None, metric), embeddings, one_class, k, rows)
        return replace(self, neighbors=torch.cat([position for _, _, position, _ in found]).cpu())

    def _columns(self) -> dict[str, list[Any]]:
        """The columns of the table; those that there are."""
        columns = {
            "sample_id": torch.arange(len(self.score)),
            "given_label": self.given_labels,
            "suggested_label": self.suggested_labels,
            "score": self.score,
            "support": self.support,
        }
        return {
            name: column.index_select(0, self.issues).tolist()
            for name, column in columns.items()
            if column is not None
        }


def find_label_issues(
    embeddings: Any,
    labels: Any,
    *,
    k: int = 200,
    threshold: float = 0.3,
    metric: Metric = "cosine",
    index: str | NeighborIndex | None = None,
) -> LabelIssues:
    r"""Find the labels that a sample's nearest neighbours speak against.

    One call on any embeddings, of any network, in any order; no noise rate is asked for. Each
    label is judged by the votes of its sample's k nearest neighbours, weighted by their distance
    (:func:`~noisydml.functional.neighbor_weights`), for it against those for the strongest label
    (:func:`~noisydml.functional.neighbor_label_score`). Five more votes follow, in which each
    neighbour's is multiplied by the score that its own label has just got.

    Args:
        embeddings: (N, D) floating point, a tensor or anything ``torch.as_tensor`` takes.
        labels: (N,) integers that are not negative, the given labels.
        k: number of neighbours, at least 1. Too many do no harm, as the weight of those from
            other classes vanishes: 200 serve classes of 5 as well as of thousands.
        threshold: labels of a lower score are issues; in ``[0, 1]``. Stricter than the 0.5 of
            training, where a right label dropped costs little.
        metric: ``"cosine"`` or ``"euclidean"``.
        index: what finds the neighbours: ``"torch"``, a FAISS factory string such as
            ``"IVF256,Flat"``, or a :class:`~noisydml.memory.index.NeighborIndex`; exact by default.

    Returns:
        :class:`LabelIssues`. The only sample of its class cannot be judged and has score 1.

    Raises:
        TypeError: for embeddings that are not floating point, or labels that are not integers.
        ValueError: for a NaN or infinity, a negative label, a wrong shape, or a bad setting.

    Memory: 12 k bytes a sample beside the embeddings and the index.

    Example:
        >>> import torch
        >>> from noisydml import find_label_issues
        >>> angles = torch.cat([torch.linspace(0, 0.5, 20), torch.linspace(2, 2.5, 20)])
        >>> embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
        >>> labels = torch.tensor([0] * 20 + [1] * 20)
        >>> labels[3] = 1
        >>> print(find_label_issues(embeddings, labels, k=10).summary())
        1 of 40 labels are most likely wrong (2.5 %).
              sample_id      given_label  suggested_label            score          support
                      3                1                0           0.0000           1.0000
    """
    embeddings, labels = _checked(embeddings, labels)
    require_count("k", k)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    neighborhood = Neighborhood(index, metric)
    everyone = torch.arange(len(labels), device=labels.device)
    found = _search(neighborhood, embeddings, labels, k, everyone)
    known = torch.cat([others for *_, others in found])  # (N,), who can be judged

    trust = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    for _ in range(_ROUNDS):
        votes = [
            neighbor_label_score(
                neighborhood.labels_at(position),
                labels[rows],
                neighbor_weights(distance, _SHARPNESS) * trust.take(position.clamp_min(0)),
            )
            for rows, distance, position, _ in found
        ]
        score, majority, support, _ = (torch.cat(parts) for parts in zip(*votes, strict=True))
        trust = torch.where(known, score, 1.0)
    issues = trust.argsort(stable=True)[: int((trust < threshold).sum())]
    near = torch.cat([position[:, :_SHOWN] for _, _, position, _ in found])
    return LabelIssues(
        issues=issues.cpu(),
        score=trust.cpu(),
        given_labels=labels.cpu(),
        suggested_labels=torch.where(known, majority, labels).cpu(),
        support=torch.where(known, support, 0.0).cpu(),
        noise_rate=len(issues) / max(len(labels), 1),
        neighbors=near.index_select(0, issues).cpu(),
    )


def _search(
    neighborhood: Neighborhood, embeddings: Tensor, labels: Tensor, k: int, rows: Tensor
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Blocks of ``rows``, each with what :meth:`Neighborhood.neighbors` says of it."""
    neighborhood.build(embeddings, labels)
    return [
        (block, *neighborhood.neighbors(embeddings[block], labels[block], k, block))
        for block in torch.split(rows, _BLOCK)
    ]


def _words(row: dict[str, Any]) -> list[str]:
    return [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()]


def _checked(embeddings: Any, labels: Any) -> tuple[Tensor, Tensor]:
    embeddings, labels = torch.as_tensor(embeddings).detach(), torch.as_tensor(labels)
    require_floating("embeddings", embeddings, ndim=2)
    require_integer("labels", labels, len(embeddings))
    if not embeddings.isfinite().all():
        raise ValueError("embeddings must be finite, got NaN or infinity")
    if (labels < 0).any():
        raise ValueError("labels must not be negative")
    return embeddings, labels.to(embeddings.device, torch.int64)
