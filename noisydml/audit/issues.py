"""The labels that are most likely wrong, as a table."""

from __future__ import annotations

import csv
import html
import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisydml.audit import page, storage
from noisydml.audit.labels import Classes, names_of, objects, words_of
from noisydml.audit.page import ClassNames
from noisydml.audit.rows import EmbeddingRows
from noisydml.functional.checks import require_count, require_share
from noisydml.functional.extras import optional
from noisydml.functional.files import replacing
from noisydml.memory.index import Metric, require_metric
from noisydml.memory.neighbors import exact_index

_BLOCK = 4096  # queries searched at once
_COPIES = 20  # told of each sample: of a group of thousands all would be millions
_NONE = "none of these"  # the suggestion for a sample that belongs to no class
_NEAR = 0.05  # rates are so near to the truth where features tell the classes: docs/judge.md


@dataclass(frozen=True, eq=False, repr=False)
class LabelIssues:
    """Labels that are most likely wrong, with the evidence; all tensors are on the CPU.

    ``len`` is the number of issues.

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
        found_by: how ``noise_rate`` was found, as words that follow it: ``"by ..."``.
        contradictions: groups of samples that are (nearly) the same and have different labels, of
            which one at least is wrong for certain: sorted int64 indices, two or more in each.
        classes: the names that the labels above stand for, by position: a tuple; None where they
            stand for themselves.
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
    classes: Classes = None

    def __len__(self) -> int:
        return len(self.issues)

    def __repr__(self) -> str:
        return f"LabelIssues({len(self)} of {len(self.score)}, noise_rate={self.noise_rate:.3g})"

    def _repr_html_(self) -> str:
        """For notebooks: the figures, and the ten most suspicious labels."""
        lines = "<br>".join(map(html.escape, self._lines()))
        table = "".join(
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
            for tag, cells in zip(["th", *["td"] * 10], self._cells(10), strict=False)
        )
        return f"<p>{lines}</p><table>{table}</table>"

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each issue, the most suspicious first.

        Issues are followed by the samples that :attr:`contradictions` holds beside them. Labels
        are as they were given; a suggested label of None is none of the classes. ``contradicts``
        are the first 20 samples that are the same and have another label. Where one has more of
        them, ``contradicts_more`` says how many; all are in :attr:`contradictions`.
        """
        return self._table(self._shown())

    def suggestions(self) -> list[dict[str, Any]]:
        """One dict for each sample without a label that gets one, the best supported first."""
        if self.suggested_labels is None or self.support is None:
            return []
        best = self.support.argsort(descending=True, stable=True)
        new = (self.given_labels < 0) & (self.suggested_labels >= 0)
        told = "sample_id", "suggested_label", "support"
        return [{name: row[name] for name in told} for row in self._table(best[new[best]])]

    def to_pandas(self) -> Any:
        """:meth:`rows` as a ``pandas.DataFrame``; needs pandas.

        A column of labels of which one is None keeps the others as they are: its dtype is Int64
        for integers, and object for names.
        """
        pandas = optional("pandas", "LabelIssues.to_pandas")
        columns: dict[str, Any] = self._columns(self._shown())
        for name, values in columns.items():
            if any(value is None for value in values):
                dtype = "Int64" if self.classes is None else object
                columns[name] = pandas.Series(values, dtype=dtype)
        return pandas.DataFrame(columns)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write :meth:`rows` as a table with a header, RFC 4180, scores to four digits.

        Labels are written as they are, also one that a spreadsheet takes for a formula, such as
        ``=cmd``: import the file there with its columns as text. Of labels that would be written
        alike, 1 and "1", the type follows: ``1 (int)``.

        Raises:
            ValueError: for names that UTF-8 cannot write.
        """
        columns = self._written()._columns(self._shown())
        try:
            with replacing(path, newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(map(_word, row) for row in zip(*columns.values(), strict=True))
        except UnicodeEncodeError as error:
            got = error.object[error.start : error.end]
            raise ValueError(
                f"classes must have names that UTF-8 can write, got {got!r}"
            ) from error

    def summary(self, top: int = 10) -> str:
        """The figures in words, and a table of the most suspicious labels.

        Args:
            top: how many rows the table has at most, at least 0.
        """
        require_count("top", top, least=0)
        table = ["  ".join(f"{cell:>15s}" for cell in cells) for cells in self._cells(top)]
        return "\n".join([*self._lines(), *table])

    def corrected_labels(
        self, *, min_support: float = 0.5
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The labels without the issues: corrected where the evidence suffices, else left out.

        An issue gets its suggested label, if there is another than the given one and its support
        suffices; so does a sample without a label. The others of them are to be left out.
        What a person has decided on the page is in its own file: :func:`apply_corrections`.

        Args:
            min_support: the least support of a suggestion that is taken, in [0, 1].

        Returns:
            (N,) labels, int64 or, where they are names, objects; and the ascending indices, int64,
            of the samples to leave out, whose labels are as given: -1, or None for a name, where
            there was none.

        Raises:
            TypeError, ValueError: unless ``min_support`` is a number in [0, 1].

        Example:
            >>> import torch
            >>> from noisydml import find_label_issues
            >>> embeddings, labels = torch.eye(3).repeat(10, 1), ["ant", "bee", "fly"] * 10
            >>> labels[7] = "fly"
            >>> fixed, leave_out = find_label_issues(embeddings, labels).corrected_labels()
            >>> fixed[7], leave_out
            ('bee', array([], dtype=int64))
        """
        require_share("min_support", min_support)
        doubtful = self.given_labels < 0
        doubtful[self.issues] = True
        codes, fixed = self.given_labels.clone(), torch.zeros_like(doubtful)
        if self.suggested_labels is not None and self.support is not None:
            fixed = doubtful & (self.suggested_labels >= 0) & (self.support >= min_support)
            fixed &= self.suggested_labels != self.given_labels
            codes = torch.where(fixed, self.suggested_labels, codes)
        labels = codes.numpy() if self.classes is None else objects(names_of(codes, self.classes))
        return labels, (doubtful & ~fixed).nonzero().squeeze(1).numpy()

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
            images: a picture for each of the N samples: an array, tensor or sequence of them, a
                data set whose items are (image, label), or a callable from a sample's index to one.
                A picture is a Pillow image of any mode, the path of a file, or an array or tensor,
                (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels, of uint8, or floating point in
                [0, 1]; what is transparent is shown on white. Only those shown are asked for.
            texts: a text for each of the N samples: a sequence, or a callable from the index.
            class_names: what each label that occurs is called: a mapping or pandas Series from
                labels to names, torchvision's ``class_to_idx``, or for integer labels a sequence.
            top: how many samples are shown at most, the most suspicious; all by default.
            image_size: larger pictures are shrunk until their larger side has as many pixels.
                Files are taken as they are.
            title: of the page.

        Raises:
            TypeError: for pictures of other numbers, or an argument of another type.
            ValueError: for another number of images or texts than N, pictures of another shape or
                beyond [0, 1], files that are no pictures, a label without a name, or a bad number.
                What was at ``path`` is then still there.

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
        rows = self._table(self._shown()[:top])
        page.write(path, self, rows, images, texts, class_names, image_size, title)

    def with_neighbors(
        self, embeddings: Any, k: int = 8, *, metric: Metric = "cosine"
    ) -> LabelIssues:
        """These issues, each with the k samples that are nearest to it.

        Those of :func:`find_label_issues` have 8 already, those of a :class:`LabelAudit` none.

        Args:
            embeddings: (N, D) floating point, of all samples: as :func:`find_label_issues` takes
                them.
            k: number of neighbours, at least 1.
            metric: ``"cosine"`` or ``"euclidean"``.

        Raises:
            TypeError, ValueError: unless ``embeddings`` are N rows of finite floats.
        """
        require_metric(metric)
        rows = EmbeddingRows(embeddings, metric)
        size, got = len(self.given_labels), rows.shape[0]
        if got != size:
            raise ValueError(f"embeddings must have {size} rows, one per sample, got {got}")
        require_count("k", k)
        features, by = rows.read(slice(size)), metric
        if features.dtype == torch.float64 and metric == "cosine":
            # Of unit vectors less an offset, which float32 holds, the distances are in one order.
            features, by = rows[:], "euclidean"
        index = exact_index(rows.device, by)
        index.build(features)
        near = [
            index.search(features[block], k, block).position
            for block in torch.split(self.issues.to(rows.device), _BLOCK)
        ]
        return replace(self, neighbors=torch.cat(near).cpu())

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to an npz file, under the very name given.

        Raises:
            TypeError: for names that are neither strings, bytes nor numbers.
        """
        storage.write(path, vars(self))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LabelIssues:
        """Read what :meth:`save` has written. Nothing in the file is executed.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not such a file, or broken.
        """
        try:
            loaded = cls(**storage.read(path))
            if len({len(loaded.score), len(loaded.given_labels)}) > 1:
                raise ValueError("lengths differ")
        except OSError:
            raise
        except Exception as error:  # json and torch have errors of their own
            raise ValueError(
                f"path must be a file written by LabelIssues.save, got {path}"
            ) from error
        return loaded

    def _lines(self) -> list[str]:
        """The figures in words."""
        known = self.given_labels >= 0
        told = known & self.score.isfinite()
        if self.probability is not None and not math.isnan(self.noise_rate):
            told &= self.probability.isfinite()
        judged = int(told.sum())
        if judged == 0 and len(known) > 0:
            lines = ["No label has been judged: nothing can be said."]
        else:
            share = 100 * len(self) / max(judged, 1)
            lines = [f"{len(self)} of {judged} labels are most likely wrong ({share:.1f} %)."]
            found = f", {self.found_by}" if self.found_by else ""
            if math.isnan(self.noise_rate):
                lines.append(f"How many are wrong in all: nothing can be said{found}.")
            elif found or self.noise_rate_bounds is not None:
                rate, between = f"{100 * self.noise_rate:.1f} %", ""
                if self.noise_rate_bounds is not None:
                    least, most = self.noise_rate_bounds
                    between = f" (between {100 * least:.1f} and {100 * most:.1f} %)"
                lines.append(f"About {rate} of all labels are wrong{between}{found}.")
                if self._vague():
                    lines.append(
                        "They may be far fewer: by features that tell the classes badly right "
                        "labels look wrong, too. Check some of them first."
                    )
            if unjudged := int(known.sum()) - judged:
                lines.append(f"Labels that have not been judged: {unjudged}.")
        if unknown := int((~known).sum()):
            new = len(self.suggestions())
            lines.append(
                f"Samples without a known label: {unknown}, of which {new} with a suggestion."
            )
        if self.contradictions:
            lines.append(
                "Groups of samples that are the same but have different labels: "
                f"{len(self.contradictions)}, with one wrong label at least in each."
            )
        return lines

    def _vague(self) -> bool:
        """Whether there are issues of which more than half may be right."""
        if self.noise_rate_bounds is None or len(self) == 0:
            return False
        least = self.noise_rate_bounds[0]
        return self.noise_rate > max(2 * least, least + _NEAR)

    def _shown(self) -> Tensor:
        """The samples of the table: issues, then others that contradict their copies."""
        groups = torch.cat([self.issues[:0], *self.contradictions])
        return torch.cat([self.issues, torch.unique(groups[~torch.isin(groups, self.issues)])])

    def _written(self) -> LabelIssues:
        """The same with classes that are the words for them."""
        if self.classes is None:
            return self
        return replace(self, classes=tuple(words_of(self.classes)))

    def _copies(self) -> dict[int, tuple[list[int], int]]:
        """For each sample of :attr:`contradictions` some of its group with another label.

        The first of them, and how many more there are.
        """
        copies = {}
        for group in self.contradictions:
            labels = self.given_labels[group].tolist()
            members, of_class = list(zip(group.tolist(), labels, strict=True)), Counter(labels)
            others = {  # each passes by the samples of its own class alone
                label: list(islice((i for i, x in members if x != label), _COPIES))
                for label in of_class
            }
            for sample, label in members:
                more = len(labels) - of_class[label] - len(others[label])
                copies[sample] = [*others[label]], more
        return copies

    def _columns(self, samples: Tensor) -> dict[str, list[Any]]:
        """The columns of the table of some samples; those that there are."""
        columns: dict[str, list[Any]] = {"sample_id": samples.tolist()}
        for name in ("given_label", "suggested_label"):
            codes = getattr(self, f"{name}s")
            if codes is not None:
                columns[name] = names_of(codes[samples], self.classes)
        for name in ("score", "support", "probability"):
            if (values := getattr(self, name)) is not None:
                columns[name] = values[samples].tolist()
        if self.contradictions:
            copies = self._copies()
            told = [copies.get(i, ([], 0)) for i in columns["sample_id"]]
            columns["contradicts"] = [some for some, _ in told]
            if any(more for _, more in copies.values()):
                columns["contradicts_more"] = [more for _, more in told]
        return columns

    def _table(self, samples: Tensor) -> list[dict[str, Any]]:
        columns = self._columns(samples)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _cells(self, top: int) -> list[list[str]]:
        """The header and the first rows as words; nothing where there is no row."""
        columns = self._written()._columns(self._shown()[:top])
        if (suggested := columns.get("suggested_label")) is not None:
            columns["suggested_label"] = [_NONE if x is None else x for x in suggested]
        rows = [list(map(_word, row)) for row in zip(*columns.values(), strict=True)]
        return [list(columns), *rows] if rows else []


def _word(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
