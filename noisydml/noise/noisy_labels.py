"""NoisyLabels: what a noise model returns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from noisydml.functional.checks import require_share
from noisydml.functional.files import read_arrays, replacing
from noisydml.noise.checks import UNLABELED, read_labels, read_mask, require_flag
from noisydml.noise.random import Integers

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_DENSE_CLASSES = 10_000  # a dense matrix of so many classes takes 800 MB
_NAMED = 10  # vanished classes named in the summary


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Labels of which some are wrong, with the truth.

    Args:
        labels: (N,) integers, the labels to train with. Models that remove classes number the
            remaining ones anew, 0 to K - 1.
        is_noisy: (N,) bool, True where a label is wrong.
        original: (N,) integers, the labels before.
        model: the name of the model.
        requested_rate: the rate asked for, in [0, 1].
        kept_classes: (K,) integers, the class in ``original`` that each new number stands for,
            or None if labels have kept their numbers.
        spared: (N,) bool, the rows that a noise model has left alone, which count in no figure
            below; None for none.

    The arrays are int64 and bool numpy arrays; ``torch.from_numpy`` takes each of them as it is,
    and ``GroundTruthFilter(loss, torch.from_numpy(noisy.is_noisy))`` is the ceiling.

    Raises:
        TypeError: if a field has the wrong type.
        ValueError: if the arrays differ in length, or ``is_noisy`` is not where the labels differ.

    Example:
        >>> from noisydml.noise import NoisyLabels
        >>> noisy = NoisyLabels(labels=[1, 0, 1], is_noisy=[True, False, False], original=[0, 0, 1])
        >>> noisy.rate
        0.3333333333333333
        >>> noisy.transition_matrix()
        array([[0.5, 0.5],
               [0. , 1. ]])
    """

    labels: Integers
    is_noisy: NDArray[np.bool_]
    original: Integers
    model: str = "given"
    requested_rate: float | None = None
    kept_classes: Integers | None = None
    spared: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        arrays: dict[str, Any] = {"labels": read_labels("labels", self.labels)}
        original = arrays["original"] = read_labels("original", self.original)
        for name in ("is_noisy", "spared"):
            if (mask := getattr(self, name)) is not None:
                arrays[name] = read_mask(name, mask, len(original))
        if not isinstance(self.model, str):
            raise TypeError(f"model must be a string, got {type(self.model).__name__}")
        if self.requested_rate is not None:
            require_share("requested_rate", self.requested_rate)
        labels = arrays["labels"]
        if labels.shape != original.shape:
            raise ValueError(
                f"labels must have {len(original)} entries, one per entry of original, "
                f"got shape {labels.shape}"
            )
        if self.kept_classes is not None:
            kept = arrays["kept_classes"] = read_labels("kept_classes", self.kept_classes)
            if self.spared is not None:
                labels = labels[(labels != UNLABELED) | ~arrays["spared"]]
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(kept):
                raise ValueError(f"labels must be in [0, {len(kept)}), the kept classes")
        for name, array in arrays.items():
            object.__setattr__(self, name, array)
        if not np.array_equal(self.given != original, self.is_noisy):
            raise ValueError("is_noisy must be True exactly where the label is not the original")
        if self.spared is not None and (self.is_noisy & self.spared).any():
            raise ValueError("is_noisy must be False for rows that were spared")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def given(self) -> Integers:
        """(N,) the labels to train with, in the numbers of ``original``."""
        if self.kept_classes is None:
            return self.labels
        given: Integers = self.labels.copy()
        there = given >= 0  # a spared row may have none
        given[there] = self.kept_classes[given[there]]
        return given

    @property
    def rate(self) -> float:
        """The share of wrong labels, 0 where there are no labels."""
        is_noisy = self._counted(self.is_noisy)
        return float(is_noisy.mean()) if len(is_noisy) else 0.0

    @property
    def classes(self) -> Integers:
        """(C,) the classes of ``original`` and of ``given``, ascending."""
        return np.union1d(self._counted(self.original), self._counted(self.given))

    @property
    def vanished(self) -> Integers:
        """(V,) the classes of ``original`` that no label names any more, ascending."""
        return np.setdiff1d(self._counted(self.original), self._counted(self.given))

    @overload
    def transition_matrix(
        self, *, counts: bool = ..., sparse: Literal[False] = ...
    ) -> NDArray[Any]: ...

    @overload
    def transition_matrix(self, *, counts: bool = ..., sparse: Literal[True]) -> csr_array: ...

    def transition_matrix(
        self, *, counts: bool = False, sparse: bool = False
    ) -> NDArray[Any] | csr_array:
        """How often a sample of class i was given class j.

        Args:
            counts: return numbers of samples (int64) instead of shares of the row (float64).
            sparse: return a ``scipy.sparse.csr_array``, whose size grows with the samples and
                not with the square of the classes.

        Returns:
            (C, C), row i for ``classes[i]`` in ``original``, column j for ``classes[j]`` in
            ``given``. Each row of shares adds up to 1. The row of a class that only ``given`` has
            (never so after a noise model) is 0.

        Raises:
            TypeError: if an argument is no bool.
            ValueError: for a dense matrix of more than 10,000 classes.
        """
        require_flag("counts", counts)
        require_flag("sparse", sparse)
        from scipy.sparse import coo_array

        classes = self.classes
        n = len(classes)
        if n > _DENSE_CLASSES and not sparse:
            raise ValueError(
                f"sparse must be True for more than {_DENSE_CLASSES} classes, got {n} classes, "
                f"a dense matrix of {8 * n * n / 1e9:.0f} GB"
            )
        rows, columns = (
            np.searchsorted(classes, self._counted(x)) for x in (self.original, self.given)
        )
        ones = np.ones(len(rows), dtype=np.int64)
        matrix = coo_array((ones, (rows, columns)), shape=(n, n)).tocsr()
        if not counts:
            matrix = matrix.astype(np.float64)
            matrix.data /= np.repeat(np.bincount(rows, minlength=n), np.diff(matrix.indptr))
        return matrix if sparse else matrix.toarray()

    def summary(self, names: Sequence[str] | None = None) -> str:
        """The noise in words: how much, how even, and which classes have vanished.

        Args:
            names: of the classes, by label; None to call them by their labels.
        """
        asked = "" if self.requested_rate is None else f", {self.requested_rate:.1%} asked for"
        is_noisy, given = self._counted(self.is_noisy), self._counted(self.given)
        lines = [
            f"{self.model}: {int(is_noisy.sum())} of {len(given)} labels are wrong "
            f"({self.rate:.1%}{asked})"
        ]
        if n := len(self) - len(given):
            lines.append(f"rows left alone: {n}")
        if len(given) == 0:
            return "\n".join(lines)
        _, before = np.unique(self._counted(self.original), return_counts=True)
        _, codes, after = np.unique(given, return_inverse=True, return_counts=True)
        lines.append(f"classes: {len(before)} before, {len(after)} after")
        if n := len(self.vanished):
            few = self.vanished[:_NAMED].tolist()
            named = ", ".join(str(label if names is None else names[label]) for label in few)
            lines.append(f"vanished classes: {n} ({named}{', ...' if n > _NAMED else ''})")
        lines.append(f"samples a class: {_spread(before)} before, {_spread(after)} after")
        wrong = np.bincount(codes, weights=is_noisy)
        lines.append(f"wrong labels in a class, %: {_spread(np.round(100 * wrong / after))}")
        if self.kept_classes is not None:
            lines.append(f"labels are numbered anew, 0 to {len(self.kept_classes) - 1}")
        return "\n".join(lines)

    def _counted(self, values: NDArray[Any]) -> NDArray[Any]:
        """Those of the rows that have a label, and were not spared."""
        there = self.original != UNLABELED
        counted: NDArray[Any] = values[there if self.spared is None else there & ~self.spared]
        return counted

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an npz file, under the very name given.

        Args:
            path: the file; if it exists it is replaced, once all has been written.
        """
        content = {name: value for name, value in vars(self).items() if value is not None}
        if self.requested_rate is not None:
            content["requested_rate"] = float(self.requested_rate)
        with replacing(path, "wb") as file:  # given a name, numpy would append .npz to it
            np.savez_compressed(file, **content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NoisyLabels:
        """Read what :meth:`save` has written. Nothing in the file is executed.

        Args:
            path: the npz file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not such a file, is broken, or its content contradicts itself.
        """
        known = {field.name for field in fields(cls)}
        content: dict[str, Any] = {
            name: value for name, value in read_arrays(path).items() if name in known
        }
        missing = {"labels", "is_noisy", "original", "model"} - content.keys()
        if missing:
            raise ValueError(
                f"path must be a file written by NoisyLabels.save, got {path} without "
                f"{', '.join(sorted(missing))}"
            )
        try:
            content["model"] = str(content["model"])
            if "requested_rate" in content:
                content["requested_rate"] = float(content["requested_rate"])
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"{path} must be written by NoisyLabels.save: {error}") from error


def put_back(
    original: Integers, counted: NDArray[np.bool_], given: Integers, model: str, rate: float
) -> NoisyLabels:
    """The n labels that a model has given, among the N: those not ``counted`` were spared."""
    labels = original.copy()
    labels[counted] = given
    spared = None if counted.all() else ~counted
    return NoisyLabels(labels, labels != original, original, model, rate, spared=spared)


def _spread(values: NDArray[Any]) -> str:
    low, middle, high = values.min(), np.median(values), values.max()
    return f"{low:.0f} to {high:.0f} (median {middle:.0f})"
