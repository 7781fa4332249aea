"""What a wrapper thought of every label, collected while it trains."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noisydml import distributed
from noisydml.audit.find import issues_of
from noisydml.audit.issues import LabelIssues
from noisydml.functional.checks import require_count, require_noise_rate
from noisydml.memory.features import FeatureMemory, last_of_equals
from noisydml.memory.judge import judge_labels
from noisydml.memory.latent import TRUSTED
from noisydml.memory.state import KeepsPrecision
from noisydml.wrappers.base import LossWrapper, is_training_step
from noisydml.wrappers.checks import in_range, raise_first
from noisydml.wrappers.decision import Decision
from noisydml.wrappers.filter import AroundFilter
from noisydml.wrappers.judged import JudgeFilter
from noisydml.wrappers.regularized import RegularizedLoss


class LabelAudit(KeepsPrecision):
    r"""Collects the decisions of a wrapper during training, sample by sample, over epochs.

    It hooks itself onto the wrapper: the training loop stays as it is, but must pass
    ``sample_ids``. Whenever a sample has been judged, its trust
    :math:`t \leftarrow d\, t + (1 - d)\, w` moves towards the weight w that the wrapper gave it
    (0 if it was dropped), or to the probability that its label is right where the decision has
    one; the first judgement sets it. What nobody could judge
    (``decision.judged``: in warm-up, of a class never seen, in eval mode) does not count.

    Args:
        wrapper: the :class:`~noisydml.LossWrapper` that the training loop calls; of nested ones
            the outermost.
        dataset_size: number of samples, N; ids lie in ``[0, N)``.
        decay: d in ``[0, 1)``, the weight of the past; 0 for the last decision alone.

    Attributes:
        trust: (N,) float64 in [0, 1].
        judged: (N,) int64, how often each sample has been judged.

    Everything is in ``state_dict``: save and load it beside the wrapper's, and a resumed run ends
    in the same result. Under ``torch.distributed`` every rank collects the decisions of all, which
    costs 48 bytes a sample on the wire.

    Raises:
        TypeError: if ``wrapper`` is not a wrapper, or a setting not a number.
        ValueError: for a setting out of its range; from the wrapper's call, after its loss has
            been computed, if ``sample_ids`` is missing or out of range.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from noisydml import KNNDenoiser, LabelAudit
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 0.9]])
        >>> labels, ids = torch.tensor([0, 0, 1, 1, 0]), torch.arange(5)
        >>> loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=5, k=2, vote="count")
        >>> audit = LabelAudit(loss_fn, dataset_size=5)
        >>> for epoch in range(3):  # the first has nothing to judge by
        ...     loss = loss_fn(embeddings, labels, sample_ids=ids)
        >>> audit.result().rows()  # doctest: +NORMALIZE_WHITESPACE
        [{'sample_id': 4, 'given_label': 0, 'suggested_label': 1, 'score': 0.0,
          'support': 1.0}]
    """

    trust: Tensor
    judged: Tensor
    evidence: Tensor
    given: Tensor
    suggested: Tensor
    support: Tensor

    def __init__(self, wrapper: LossWrapper, dataset_size: int, *, decay: float = 0.5) -> None:
        super().__init__()
        if not isinstance(wrapper, LossWrapper):
            raise TypeError(f"wrapper must be a LossWrapper, got {type(wrapper).__name__}")
        require_count("dataset_size", dataset_size)
        require_noise_rate(decay, "decay")
        self.decay = float(decay)
        self.dataset_size = dataset_size
        for name in ("trust", "evidence", "support"):
            self.register_buffer(name, torch.zeros(dataset_size, dtype=torch.float64))
        for name, start in (("judged", 0), ("given", -1), ("suggested", -1)):
            self.register_buffer(name, torch.full((dataset_size,), start))
        # In a tuple, its state is not this one's too; empty once it was detached.
        self._audited: tuple[LossWrapper, ...] = (wrapper,)
        self._ends_with: LabelIssues | None = None
        self._hook = wrapper.register_forward_hook(self._collect, with_kwargs=True)

    def detach(self) -> None:
        """Collect no more; the result is what it is now, whatever the wrapper does then.

        Of a state that is loaded afterwards the result is the trust.
        """
        self._hook.remove()
        if self._audited:
            self._ends_with, self._audited = self._by_features(), ()

    def prepare_for(self, state: dict[str, Any], prefix: str) -> None:
        self._ends_with = None

    def result(self) -> LabelIssues:
        """What has been found so far: labels trusted less than one half, the least trusted first.

        If the wrapper whose decisions they are has the features of the last pass
        (``KNNDenoiser``, ``JudgeFilter``), the judge of :func:`noisydml.find_label_issues` has the
        last word about the samples that were seen, unless it can say nothing; a ``JudgeFilter``
        has asked it already, and its ``probability`` counts. That judges the data set once more.
        Otherwise it is the trust, and so it is where ranks hold a part of these features each
        (``shard=True``).

        Equal trust is ordered by the wrapper's latest score. ``score`` is the trust; samples that
        were never judged have NaN there, and those that were never seen -1 for a given label.
        ``noise_rate`` is the share of issues among those judged, NaN before there is one. There
        are no suggestions if the wrapper makes none.
        """
        found = self._by_features() if self._audited else self._ends_with
        if found is not None:
            return found
        seen = self.judged > 0
        flagged = seen & (self.trust < TRUSTED)
        order = self.evidence.argsort(stable=True)
        order = order[self.trust[order].argsort(stable=True)]
        suggests = bool((self.suggested >= 0).any())
        return LabelIssues(
            issues=order[flagged[order]].cpu(),
            score=torch.where(seen, self.trust, math.nan).cpu(),
            given_labels=self.given.cpu(),
            suggested_labels=torch.where(seen, self.suggested, self.given).cpu()
            if suggests
            else None,
            support=self.support.cpu() if suggests else None,
            noise_rate=int(flagged.sum()) / int(seen.sum()) if seen.any() else math.nan,
        )

    @torch.no_grad()
    def _by_features(self) -> LabelIssues | None:
        """What the judge says of the features of the last pass; None if it says nothing."""
        wrapper: Any = self._audited[0]
        while isinstance(wrapper, (AroundFilter, RegularizedLoss)):  # whose decisions are its own
            wrapper = wrapper.loss
        reference = getattr(wrapper, "reference", None)
        if not isinstance(reference, FeatureMemory) or len(reference) < self.dataset_size:
            return None
        if reference.ranks > 1:  # all ranks would have to ask
            return None
        labels = reference.labels[: self.dataset_size]
        labels = torch.where((self.given >= 0) & (labels >= 0), self.given, labels)
        if not bool((labels >= 0).any() & (self.judged > 0).any()):
            return None
        rows = (labels >= 0).nonzero().squeeze(1)
        features, given = reference.features[rows].float(), labels[rows]
        # Trained on these labels, so that the core tells nothing.
        judged = judge_labels(features, given, metric=reference.metric, core_refutes=False)
        if isinstance(wrapper, JudgeFilter):
            judged = wrapper.said_of(rows, given, judged)
        found = issues_of(judged, given)
        if math.isnan(found.noise_rate):
            return None
        assert found.probability is not None
        rows, near = rows.cpu(), judged.neighbors[found.issues.to(rows.device)].cpu()
        nothing = torch.full((self.dataset_size,), math.nan, dtype=torch.float64)
        unknown = torch.full((self.dataset_size,), -1)
        return replace(
            found,
            issues=rows[found.issues],
            score=nothing.index_copy(0, rows, found.score),
            probability=nothing.index_copy(0, rows, found.probability),
            given_labels=unknown.index_copy(0, rows, labels.cpu()[rows]),
            suggested_labels=unknown.index_copy(0, rows, judged.suggested_labels.cpu()),
            support=nothing.index_copy(0, rows, judged.support.cpu()),
            neighbors=torch.where(near < 0, near, rows[near]),
            contradictions=tuple(rows[group] for group in found.contradictions),
        )

    def extra_repr(self) -> str:
        return f"dataset_size={self.dataset_size}, decay={self.decay}"

    def _collect(
        self, wrapper: LossWrapper, args: tuple[Any, ...], kwargs: dict[str, Any], _: Tensor
    ) -> None:
        if wrapper.training and wrapper.decision is not None and is_training_step():
            with torch.no_grad():
                self._take(wrapper.decision, args, kwargs)

    def _take(self, decision: Decision, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("sample_ids")
        if ids is None:
            raise ValueError("LabelAudit needs sample_ids in every call of the wrapper it audits")
        labels = args[1] if len(args) > 1 else kwargs["labels"]
        device = decision.keep.device
        trust = decision.weight if decision.probability is None else decision.probability
        trust = torch.where(decision.judged, trust.clamp(0, 1).double(), math.nan)
        none = torch.full_like(trust, -1)
        said = (decision.suggested_labels, decision.score, decision.support)
        suggested, score, support = (none if value is None else value for value in said)
        columns = [column.to(device, torch.int64) for column in (ids, labels, suggested)]
        columns += [column.double() for column in (trust, score, support)]
        if distributed.world_size() > 1:
            sizes = distributed.number_of_each(len(trust), "a label audit")
            columns = distributed.gather_rows(columns, sizes)
        if self.trust.device != device:
            self.to(device)
        ids = columns[0]
        raise_first([in_range("sample_ids", ids, self.dataset_size, "dataset_size of LabelAudit")])
        # Of rows with the same id the last counts, but each as a judgement.
        last = last_of_equals(ids)
        ids, labels, suggested, trust, score, support = (column[last] for column in columns)
        judged = ~trust.isnan()
        past = torch.where(self.judged[ids] > 0, self.decay, 0.0)
        self.given[ids] = labels
        for name, value in (
            ("trust", past * self.trust[ids] + (1 - past) * trust),
            ("evidence", score),
            ("suggested", suggested),
            ("support", support.clamp_min(0)),
        ):
            buffer = getattr(self, name)
            buffer[ids] = torch.where(judged, value, buffer[ids])
        self.judged.index_add_(0, ids, judged.long())
