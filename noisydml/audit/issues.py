"""The labels that are most likely wrong, as a table."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from noisydml.audit import page
from noisydml.audit.labels import read_embeddings
from noisydml.audit.page import ClassNames
from noisydml.functional.checks import require_count
from noisydml.memory.index import Metric
from noisydml.memory.neighbors import Neighborhood

_BLOCK = 4096  # queries searched at once


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Labels that are most likely wrong, with the evidence; all tensors are on the CPU.

    Attributes:
        issues: (n,) int64, indices of the samples whose label is distrusted, the most suspicious
            first.
        score: (N,) float64 in [0, 1], higher is cleaner; NaN for samples never judged.
        given_labels: (N,) int64; -1 for samples that have no label, or whose label is not known.
        suggested_labels: (N,) int64, what the evidence speaks for; -1 for none of the classes.
            None without suggestions.
        support: (N,) float64 in [0, 1], the share of the evidence for the suggested label; None
            without suggestions.
        noise_rate: the estimated share of wrong labels; NaN where nothing can be said.
        neighbors: (n, m) int64, for each issue the samples most like it, the nearest first; -1
            where there are fewer. None where they are not known: see :meth:`with_neighbors`.
        probability: (N,) floating point in [0, 1], the probability that the label is right; NaN
            for samples never judged. None where no method gave one.
        noise_rate_bounds: a lower and an upper bound of ``noise_rate``; None where there are none.
        found_by: how ``noise_rate`` was found, as words for the summary.
        contradictions: groups of samples that are (nearly) the same and have different labels, of
            which one at least is wrong for certain: sorted int64 indices, two or more in each.
        classes: what the labels above stand for, by position; None where they stand for themselves.
    """

    issues: Tensor
    score: Tensor
    given_labels: Tensor
    suggested_labels: Tensor | None
    support: Tensor | None
    noise_rate: float
    neighbors: Tensor | None = None
    probability: Tensor | None = None
    noise_rate_bounds: tuple[float, float] | None = None
    found_by: str = ""
    contradictions: tuple[Tensor, ...] = ()
    classes: Any = None

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
        embeddings = read_embeddings(embeddings)
        require_count("k", k)
        one_class, rows = (x.to(embeddings.device) for x in (one_class, self.issues))
        hood = Neighborhood(None, metric)
        hood.build(embeddings, one_class)
        near = [
            hood.neighbors(embeddings[block], one_class[block], k, block)[1]
            for block in torch.split(rows, _BLOCK)
        ]
        return replace(self, neighbors=torch.cat(near).cpu())

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


def _words(row: dict[str, Any]) -> list[str]:
    return [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()]
