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
    """Labels that are most likely wrong, with the evidence.

    Attributes:
        issues: (n,) int64, indices of the samples whose label is distrusted, the most suspicious
            first.
        score: (N,) float64 in [0, 1], higher is cleaner; NaN for samples never judged.
        given_labels: (N,) int64.
        suggested_labels: (N,) int64, what the evidence speaks for; None where there is none.
        support: (N,) float64 in [0, 1], the share of the evidence that does; None likewise.
        noise_rate: the estimated share of wrong labels: that of distrusted ones.
        neighbors: (n, m) int64, for each issue the samples most like it, the nearest first; -1
            where there are fewer. None where they are not known: see :meth:`with_neighbors`.

    All tensors are on the CPU.
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
        columns: dict[str, Tensor | None] = {
            "sample_id": self.issues,
            "given_label": self._of_issues(self.given_labels),
            "suggested_label": self._of_issues(self.suggested_labels),
            "score": self._of_issues(self.score),
            "support": self._of_issues(self.support),
        }
        lists = {name: column.tolist() for name, column in columns.items() if column is not None}
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write :meth:`rows` as a table with a header, RFC 4180, numbers to four digits."""
        names = ["sample_id", "given_label", "suggested_label", "score", "support"]
        if self.suggested_labels is None:
            names = ["sample_id", "given_label", "score"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            for row in self.rows():
                numbers = {n: f"{v:.4f}" for n, v in row.items() if isinstance(v, float)}
                writer.writerow(row | numbers)

    def summary(self, top: int = 10) -> str:
        """The figures in words, and a table of the most suspicious labels.

        Args:
            top: how many rows the table has at most, at least 0.
        """
        require_count("top", top, least=0)
        judged = int(self.score.isfinite().sum())
        lines = [
            f"{len(self.issues)} of {judged} labels are most likely wrong "
            f"({100 * self.noise_rate:.1f} %)."
        ]
        rows = self.rows()[:top]
        if rows:
            lines.append("  ".join(f"{name:>15s}" for name in rows[0]))
        for row in rows:
            cells = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values())
            lines.append("  ".join(f"{cell:>15s}" for cell in cells))
        return "\n".join(lines)

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
            texts: likewise a text for each sample.
            class_names: from labels to names, a mapping or a sequence; each label that occurs
                must have one.
            top: how many issues are shown at most, the most suspicious; all by default.
            image_size: larger pictures are shrunk until their larger side has as many pixels.
                Files are taken as they are.
            title: of the page.

        Raises:
            TypeError, ValueError: for a bad argument, or a file that is no picture.

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
        near = [] if self.neighbors is None else self.neighbors[:top].tolist()
        page.write(
            path,
            rows,
            near or [[] for _ in rows],
            self.given_labels.tolist(),
            images=images,
            texts=texts,
            class_names=class_names,
            title=title,
            image_size=image_size,
        )

    def with_neighbors(
        self, embeddings: Any, k: int = 8, *, metric: Metric = "cosine"
    ) -> LabelIssues:
        """The same issues, each with the k samples that are nearest to it.

        :func:`find_label_issues` has given them already; this is for a :class:`LabelAudit`, or
        for more of them.

        Args:
            embeddings: (N, D) floating point, of all samples.
            k: number of neighbours.
            metric: ``"cosine"`` or ``"euclidean"``.
        """
        embeddings = torch.as_tensor(embeddings)
        if len(embeddings) != len(self.given_labels):
            raise ValueError(
                f"embeddings must have {len(self.given_labels)} rows, one per sample, "
                f"got {len(embeddings)}"
            )
        nothing = torch.zeros_like(self.given_labels)  # nobody is left out for its label
        embeddings, nothing = _checked(embeddings, nothing)
        require_count("k", k)
        neighborhood = Neighborhood(None, metric)
        neighborhood.build(embeddings, nothing)
        near = [
            neighborhood.neighbors(embeddings[block], nothing[block], k, block)[1]
            for block in torch.split(self.issues.to(embeddings.device), _BLOCK)
        ]
        return replace(self, neighbors=torch.cat(near).cpu())

    def _of_issues(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values.index_select(0, self.issues)


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
    (:func:`~noisydml.functional.neighbor_weights`), for it against those for the strongest label,
    as in :class:`~noisydml.KNNDenoiser`. Then the vote is held five times again, with each
    neighbour's vote multiplied by the score that its own label has just got, so that labels found
    wrong no longer speak for others.

    Args:
        embeddings: (N, D) floating point, a tensor or anything ``torch.as_tensor`` takes.
        labels: (N,) integers that are not negative, the given labels.
        k: number of neighbours. Too many do no harm, as the weight of those from other classes
            vanishes: 200 serve classes of 5 as well as of thousands.
        threshold: labels of a lower score are issues; in ``[0, 1]``. Stricter than the 0.5 of
            training, where a right label dropped costs little: see the figures in the
            documentation.
        metric: ``"cosine"`` or ``"euclidean"``.
        index: as in :class:`~noisydml.KNNDenoiser`; exact by default.

    Returns:
        :class:`LabelIssues`. The only sample of its class cannot be judged and has score 1.

    Raises:
        TypeError, ValueError: for a bad argument, such as embeddings with a NaN.

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
    neighborhood.build(embeddings, labels)
    everyone = torch.arange(len(labels), device=labels.device)
    blocks = torch.split(everyone, _BLOCK)
    found = [neighborhood.neighbors(embeddings[b], labels[b], k, b) for b in blocks]
    known = torch.cat([others for _, _, others in found]) if found else everyone.bool()

    trust = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    majority, support = labels, trust - 1
    for _ in range(_ROUNDS):
        votes = [
            neighbor_label_score(
                neighborhood.labels_at(position),
                labels[block],
                neighbor_weights(distance, _SHARPNESS) * trust.take(position.clamp_min(0)),
            )
            for block, (distance, position, _) in zip(blocks, found, strict=True)
        ]
        if votes:
            score, majority, support, _ = (torch.cat(parts) for parts in zip(*votes, strict=True))
            trust = torch.where(known, score, 1.0)
    flagged = trust < threshold
    order = trust.argsort(stable=True)
    issues = order[flagged[order]]
    near = [position[:, :_SHOWN] for _, position, _ in found]
    return LabelIssues(
        issues=issues.cpu(),
        score=trust.cpu(),
        given_labels=labels.cpu(),
        suggested_labels=torch.where(known, majority, labels).cpu(),
        support=torch.where(known, support, 0.0).cpu(),
        noise_rate=flagged.double().mean().item() if len(labels) > 0 else 0.0,
        neighbors=torch.cat(near).index_select(0, issues).cpu() if near else None,
    )


def _checked(embeddings: Any, labels: Any) -> tuple[Tensor, Tensor]:
    embeddings, labels = torch.as_tensor(embeddings).detach(), torch.as_tensor(labels)
    require_floating("embeddings", embeddings, ndim=2)
    require_integer("labels", labels, len(embeddings))
    if not embeddings.isfinite().all():
        raise ValueError("embeddings must be finite, got NaN or infinity")
    if (labels < 0).any():
        raise ValueError("labels must not be negative")
    return embeddings, labels.to(embeddings.device, torch.int64)
