"""The protocol that every wrapper follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noisydml import distributed, pml
from noisydml.functional.checks import require_loss
from noisydml.pml import kinds
from noisydml.pml.batch import Batch
from noisydml.pml.state import UnsavedState
from noisydml.wrappers.checks import (
    ValueCheck,
    agree_across_ranks,
    in_range,
    make_batch,
    raise_first,
    value_checks,
)


@dataclass(frozen=True, eq=False)
class Decision:
    """What a wrapper decided about one batch; detached, on the batch's device.

    Attributes:
        keep: (B,) bool, the samples that the wrapped loss saw.
        weight: (B,) float, what the wrapper multiplied each sample's loss by, 1 for trusted ones.
            A ``sample_weight`` of the caller's is not part of it.
        score: (B,) float, the evidence that a label is right: higher is cleaner. None where the
            method has none.
        threshold: 0-dim float in the unit of ``score``; samples below it are distrusted. None
            where the method has none.
        noise_rate: 0-dim float, the share of wrong labels that the wrapper goes by, estimated or
            given. None where the method needs none.
        suggested_labels: (B,) int64, the label that the evidence speaks for. None where the
            method makes no suggestion.
        support: (B,) float in [0, 1], the share of the evidence that speaks for it; None likewise.
        runner_up: (B,) float in [0, 1], the second label's share over the first's; None likewise.
    """

    keep: Tensor
    weight: Tensor
    score: Tensor | None = None
    threshold: Tensor | None = None
    noise_rate: Tensor | None = None
    suggested_labels: Tensor | None = None
    support: Tensor | None = None
    runner_up: Tensor | None = None

    @classmethod
    def trusting(cls, batch: Batch) -> Decision:
        """Every sample kept, with weight 1."""
        ones = torch.ones(len(batch), device=batch.device)
        return cls(keep=ones.bool(), weight=ones)


class Judgement(NamedTuple):
    """A decision, and what goes with it.

    ``own_loss`` trains the wrapper's own parameters (proxies): it must reach nothing but those,
    and its value is never added to the result. ``evidence`` is whatever ``commit`` needs of what
    ``judge`` has computed. ``value`` is the value of the wrapped loss, where it had to be called
    in order to judge; it is not called again.
    """

    decision: Decision
    own_loss: Tensor | None = None
    evidence: Any = None
    value: Tensor | None = None


class LossWrapper(nn.Module, ABC):
    """Base of all wrappers: a loss around a loss, called like one of pytorch-metric-learning.

    A subclass says in ``judge`` what it makes of a batch, changes nothing there, and writes its
    state in ``commit``, which runs only after the wrapped loss has returned. The rest is here.

    Args:
        loss: any PML loss, PML's ``CrossBatchMemory``, another wrapper, or any callable
            ``loss(embeddings, labels)`` that returns one loss per sample, shape (B,), or one
            number.
        validate_args: whether the *values* of arguments are checked (NaN, labels and ids out of
            range), which costs one host synchronisation a step on CUDA. Types and shapes are
            always checked. Of nested wrappers the outermost checks, and its setting counts.

    Attributes:
        decision: the :class:`Decision` on the last batch; None before the first.
    """

    def __init__(self, loss: Callable[..., Any], *, validate_args: bool = True) -> None:
        super().__init__()
        require_loss("loss", loss)
        kinds.refuse_unlabelled(loss)
        self.loss = loss
        self.validate_args = validate_args
        self.decision: Decision | None = None
        self._ranks_agree = False
        if isinstance(loss, nn.Module) and not isinstance(loss, LossWrapper):
            unsaved = UnsavedState(loss)
            if unsaved:
                self.unsaved_state = unsaved

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            embeddings: (B, D) floating point, finite. B may be 0.
            labels: (B,) integers, as given, right or wrong.
            indices_tuple: pairs or triplets from a PML miner; cut and renumbered with the batch.
            ref_emb: (R, D) embeddings to compare the batch with, as in PML. Never filtered.
            ref_labels: (R,) their labels.
            sample_weight: (B,) weights, not negative; multiplied with the wrapper's own.
            sample_ids: (B,) positions of the samples in the data set.

        Returns:
            0-dim tensor: ``(weight * per_sample).mean()`` over the samples kept, and the terms of
            a :class:`RegularizedLoss` of all samples. In eval mode the wrapped loss's own value.
            With no sample (left), a zero that has a graph.

        Raises:
            TypeError, ValueError: for a bad argument, before anything has changed.
        """
        batch = self._checked(
            embeddings, labels, indices_tuple, ref_emb, ref_labels, sample_weight, sample_ids
        )
        self._prepare(batch.device)
        terms = self._terms(batch)
        value = self.run(batch)
        for term in terms:
            value = value + term.to(value.dtype)
        return value

    def run(self, batch: Batch) -> Tensor:
        """Loss of a batch that has been checked; wrappers call this on one another."""
        if not self.training:
            self.decision = Decision.trusting(batch)
            return call_loss(self.loss, self.embedded(batch))
        judgement = self.judge(batch)
        decision, own_loss, value = judgement.decision, judgement.own_loss, judgement.value
        if value is None:
            value = self.wrapped_value(self.narrowed(batch, decision))
        added = self.added_term(batch, judgement)
        if added is not None:
            value = value + added.to(value.dtype)
        if own_loss is not None and own_loss.requires_grad:
            own_loss = own_loss.to(value.dtype)
            value = value + (own_loss - own_loss.detach())  # its gradient, not its value
        self.commit(batch, judgement)
        self.decision = decision
        return value

    @abstractmethod
    def judge(self, batch: Batch) -> Judgement:
        """Decide about a batch without changing any state."""

    def narrowed(self, batch: Batch, decision: Decision) -> Batch:
        """What the wrapped loss gets to see of the batch: by default the rows that are kept."""
        return batch.select(decision.keep)

    @property
    def drops(self) -> bool:
        """Whether it is a filter: what it does to a batch is to drop rows, and no more."""
        return type(self).narrowed is LossWrapper.narrowed

    @property
    def suggests(self) -> bool:
        """Whether its decisions say, with ``runner_up``, which label a sample should have."""
        return False

    def wrapped_value(self, batch: Batch) -> Tensor:
        """Value of the wrapped loss on what it gets to see."""
        return call_loss(self.loss, batch)

    def embedded(self, batch: Batch) -> Batch:
        """What the wrapped loss gets to see in eval mode: the batch, unless the wrapper embeds."""
        return batch

    def added_term(self, batch: Batch, judgement: Judgement) -> Tensor | None:
        """A loss of the wrapper's own that is added to the wrapped one's; by default none."""
        return None

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        """Write the state that follows from a batch; by default there is none."""

    @property
    def adds_term(self) -> bool:
        """Whether there is a term to add that no weight and no filter may touch."""
        return False

    def term(self, batch: Batch) -> Tensor:
        """That term, 0-dim, of the batch as the outermost wrapper was called with it."""
        raise NotImplementedError

    def whole(self, batch: Batch) -> Batch:
        """What the wrappers inside this one take for the whole batch in their ``term``."""
        return batch

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        """What this wrapper asks of the values of a batch; raises for types and shapes."""
        return []

    def seen_inside(self, batch: Batch) -> Batch:
        """The batch for the checks of the wrappers inside: as wide as what they will see."""
        return batch

    def parameter_groups(self, lr: float, proxy_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: none of the loss's parameters can be forgotten.

        Args:
            lr: learning rate of the wrapped loss's own parameters, if it has any.
            proxy_lr: learning rate of parameters that serve only to judge the samples. ProcSim
                gives its proxies Adam's default, 1e-3, and no weight decay (appendix A.3); under
                Adam a group of its own is the same as an optimiser of its own.

        Returns:
            One or two groups, to be added to the model's:
            ``torch.optim.Adam([{"params": model.parameters()}, *loss_fn.parameter_groups(lr)])``.
        """
        wrappers = [module for module in self.modules() if isinstance(module, LossWrapper)]
        own = list({id(p): p for each in wrappers for p in each.own_parameters()}.values())
        taken = {id(p) for p in own}
        wrapped = [p for p in self.parameters() if id(p) not in taken]
        groups: list[dict[str, Any]] = []
        if wrapped:
            groups.append({"params": wrapped, "lr": lr})
        if own:
            groups.append({"params": own, "lr": proxy_lr, "weight_decay": 0.0})
        return groups

    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that serve only to judge the samples."""
        return []

    def shared_state(self) -> list[Tensor]:
        """What must be equal on all ranks; they take it over from rank 0 before the first step."""
        return [*self.own_parameters(), *self.buffers(recurse=False)]

    def state_replaced(self) -> None:
        """Called when a rank has taken its state over: derive anew what follows from it."""

    def _chain(self) -> Iterator[LossWrapper]:
        """This wrapper and those inside it."""
        loss: Any = self
        while isinstance(loss, LossWrapper):
            yield loss
            loss = loss.loss

    def _checked(self, embeddings: Tensor, *arguments: Any) -> Batch:
        batch, error = None, None
        judging = any(wrapper.training for wrapper in self._chain())
        try:
            batch = seen = make_batch(embeddings, *arguments)
            checks: list[ValueCheck] = []
            for wrapper in self._chain():
                if wrapper.training:
                    checks += wrapper.own_checks(seen)
                seen = wrapper.seen_inside(seen)
            if self.validate_args:
                raise_first([*value_checks(batch), *checks, *self._leaf_checks(batch)])
        except (TypeError, ValueError) as refusal:
            error = refusal
        if judging and distributed.world_size() > 1:
            agree_across_ranks(error, batch)
        if error is not None:
            raise error
        assert batch is not None
        return batch

    def _terms(self, batch: Batch) -> list[Tensor]:
        """The terms of a nest that are added outside: nothing has weighted or dropped a row yet."""
        chain = [wrapper for wrapper in self._chain() if wrapper.training]
        while chain and not chain[-1].adds_term:
            chain.pop()
        terms = []
        for wrapper in chain:
            if wrapper.adds_term:
                terms.append(wrapper.term(batch))
            batch = wrapper.whole(batch)
        return terms

    def _leaf_checks(self, batch: Batch) -> list[ValueCheck]:
        """The range of labels that the innermost loss has proxies for."""
        *_, innermost = self._chain()
        num_classes, _ = kinds.embedding_shape(innermost.loss)
        if num_classes is None:
            return []
        return [in_range("labels", batch.labels, num_classes, "the classes of the wrapped loss")]

    def _prepare(self, device: torch.device) -> None:
        """On first use: all state where the embeddings are, and all ranks with the same proxies."""
        state = (*self.parameters(), *self.buffers())
        if any(tensor.device != device for tensor in state):
            self.to(device)
        if self.training and not self._ranks_agree and distributed.world_size() > 1:
            shared = [tensor for wrapper in self._chain() for tensor in wrapper.shared_state()]
            distributed.broadcast_from_first([tensor.data for tensor in shared])
            for wrapper in self._chain():
                wrapper.state_replaced()
            self._ranks_agree = True


def call_loss(loss: Callable[..., Any], batch: Batch) -> Tensor:
    """Value of what a wrapper wraps, be it another wrapper or the user's loss.

    The user's loss is never called with an empty batch; a wrapper may be, as it may have to take
    part in a collective.
    """
    if isinstance(loss, LossWrapper):
        return loss.run(batch)
    if len(batch) == 0:
        parameters = loss.parameters() if isinstance(loss, nn.Module) else ()
        return zero_with_graph(batch.embeddings, parameters)
    return pml.call(loss, batch)


def zero_with_graph(embeddings: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """0, of which all get a gradient of zeros: DistributedDataParallel waits for each parameter.

    A sum of no elements is 0 whatever the tensors hold.
    """
    zero = embeddings.reshape(-1).narrow(0, 0, 0).sum()
    for parameter in parameters:
        zero = zero + parameter.reshape(-1).narrow(0, 0, 0).sum().to(zero.dtype)
    return zero


def parameters_besides(judge: Any, loss: Any) -> list[nn.Parameter]:
    """The parameters of a judging loss that the wrapped loss does not train already."""
    if not isinstance(judge, nn.Module):
        return []
    trained = {id(p) for p in loss.parameters()} if isinstance(loss, nn.Module) else set()
    return [p for p in judge.parameters() if id(p) not in trained]
