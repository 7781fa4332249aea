"""Features with labels and ids: what is stored, and how it is saved, loaded and dealt to ranks."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from noisydml.functional.checks import require_count
from noisydml.memory.centers import EMPTY
from noisydml.memory.dealt import Dealt
from noisydml.memory.index import Metric
from noisydml.memory.state import AllOrNothing, overwrite, require_state_in_range

_Self = TypeVar("_Self", bound="Entries")


class Entries(AllOrNothing):
    """A number of places for a feature, a label and an id each; whoever writes them is a subclass.

    Arguments and attributes are those of :class:`~noisydml.memory.FeatureMemory`.

    Raises:
        TypeError: if a size is no integer, or ``dtype`` is none of floating point.
        ValueError: if a size is below 1.
    """

    features: Tensor
    labels: Tensor
    sample_ids: Tensor
    total: Tensor
    version = 0

    def __init__(
        self,
        memory_size: int,
        embedding_size: int | None,
        *,
        normalize: bool,
        dtype: torch.dtype,
        shard: bool,
    ) -> None:
        super().__init__()
        require_count("memory_size", memory_size)
        if embedding_size is not None:
            require_count("embedding_size", embedding_size)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        self.memory_size = memory_size
        self.embedding_size = embedding_size
        self.normalize = normalize
        self.dealt = Dealt(memory_size, shard)
        self.widens = embedding_size is None
        features = torch.zeros(self.dealt.part_size, embedding_size or 0, dtype=dtype)
        if self.widens:  # no buffer, as their shapes stay
            self.features = features
        else:
            self.register_buffer("features", features)
        empty = torch.full((self.dealt.part_size,), EMPTY, dtype=torch.int64)
        self.register_buffer("labels", empty)
        self.register_buffer("sample_ids", empty.clone())
        self.register_buffer("total", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return self.memory_size

    @property
    def ranks(self) -> int:
        return self.dealt.ranks

    @property
    def metric(self) -> Metric:
        """By what the features are to be compared: where they are normalised, by directions."""
        return "cosine" if self.normalize else "euclidean"

    @property
    def filled(self) -> Tensor:
        """(M,) bool, which entries hold something."""
        return self.labels != EMPTY

    def reset(self) -> None:
        """Forget everything."""
        self.clear()
        if self.widens:
            self._widen(None)

    def clear(self) -> None:
        """Forget all entries, but not how wide they are."""
        self.version += 1
        for tensor in (self.features, *self.buffers()):
            tensor.zero_()
        self.labels.fill_(EMPTY)
        self.sample_ids.fill_(EMPTY)

    def copy_from(self, other: Entries) -> None:
        """Take over all entries of a memory of the same settings, without centers."""
        if self.embedding_size != other.embedding_size:
            self._widen(other.embedding_size)
        self.version += 1
        for name in ("features", "labels", "sample_ids", "total"):
            overwrite(getattr(self, name), getattr(other, name))

    def _widen(self, width: int | None) -> None:
        self.version += 1
        self.embedding_size = width
        with torch.inference_mode(False):  # what is made in it is no good for training
            self.features = self.features.new_zeros(self.dealt.part_size, width or 0)

    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.features, self.labels, self.sample_ids

    def _apply(self: _Self, fn: Any, recurse: bool = True) -> _Self:
        self.version += 1
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.widens:
            self.features = fn(self.features)
        return self

    def get_extra_state(self) -> Tensor:
        """Whether features are normalised, 0-dim int64; of a part (3,), with rank and ranks."""
        kind = torch.full_like(self.total, self.normalize)
        place = [torch.full_like(kind, value) for value in (self.dealt.rank, self.ranks)]
        return torch.stack([kind, *place]) if self.ranks > 1 else kind

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: a state of another setting has been refused."""

    def refuse_values(self, state: dict[str, Any], prefix: str) -> None:
        """Raise ValueError for a state that this memory cannot have had."""
        place: list[int] = []  # of a part: its rank, and of how many
        if (kind := state.get(f"{prefix}_extra_state")) is not None:
            if kind.shape not in ((), (3,)):
                raise ValueError(
                    f"{prefix}_extra_state must have the shape () or, of a part, (3,), "
                    f"got {tuple(kind.shape)}"
                )
            normalize, *place = kind.reshape(-1).tolist()
            if normalize != int(self.normalize):
                raise ValueError(
                    f"{prefix}_extra_state must be that of a memory with normalize="
                    f"{self.normalize}, which follows from metric, got {bool(normalize)}"
                )
            rank = self.dealt.rank
            if place and place != [rank, self.ranks]:
                raise ValueError(
                    f"{prefix}_extra_state must be that of the whole memory, from "
                    f"noisydml.distributed.full_state_dict, or of the part of rank {rank} of "
                    f"{self.ranks}, got the part of rank {place[0]} of {place[1]}"
                )
        own = slice(None) if place else slice(self.dealt.rank, None, self.ranks)
        size = self.dealt.part_size if place else self.memory_size
        width = None if self.widens else self.embedding_size  # None: any
        limits: dict[str, tuple[tuple[int | None, ...], float, float]] = {
            "features": ((size, width), -math.inf, math.inf),
            "labels": ((size,), EMPTY, math.inf),
            "sample_ids": ((size,), EMPTY, math.inf),
        }
        for name, (shape, least, end) in limits.items():
            if (rows := state.get(f"{prefix}{name}")) is not None:
                got = tuple(rows.shape)
                same = [want in (None, had) for want, had in zip(shape, got, strict=False)]
                if len(got) != len(shape) or not all(same):
                    raise ValueError(f"{prefix}{name} must have the shape {shape}, got {got}")
                require_state_in_range(f"{prefix}{name}", rows[own], least, end)
        require_state_in_range(f"{prefix}total", state.get(f"{prefix}total"), 0)

    def any_shape(self) -> list[str]:
        """The names in a state whose shapes are for :meth:`refuse_values` to check."""
        return ["features", "labels", "sample_ids", "_extra_state"]

    def full_state(self, prefix: str = "") -> dict[str, Tensor]:
        """On rank 0 the entries of a whole memory, on the CPU; all ranks call it."""
        if self.ranks == 1:
            return {}
        names = ("features", "labels", "sample_ids")
        parts = [self.dealt.whole_on_first(entries) for entries in self._entries()]
        found = zip(names, parts, strict=True)
        whole = {f"{prefix}{name}": rows for name, rows in found if rows is not None}
        return {**whole, f"{prefix}_extra_state": torch.tensor(int(self.normalize))}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.widens:
            destination[f"{prefix}features"] = self.features

    def prepare_for(self, state: dict[str, Any], prefix: str) -> None:
        """Take this rank's part of the state of a whole memory, and its width."""
        self.version += 1
        kind = state.get(f"{prefix}_extra_state")
        if self.ranks > 1 and (kind is None or kind.ndim == 0):  # of the whole memory
            for name, fill in (("features", 0), ("labels", EMPTY), ("sample_ids", EMPTY)):
                if (rows := state.get(f"{prefix}{name}")) is not None:
                    state[f"{prefix}{name}"] = self.dealt.part_of(rows, fill)
        features = state.pop(f"{prefix}features", None) if self.widens else None
        if features is not None:
            self._widen(features.shape[1] or None)
            self.features.copy_(features)
            if self.embedding_size is None:  # as averaged, where only buffers were: nobody is there
                for name in ("labels", "sample_ids"):
                    state[f"{prefix}{name}"] = torch.full_like(state[f"{prefix}{name}"], EMPTY)
