"""The protocol that every wrapper follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from noisydml import distributed, pml
from noisydml.functional.checks import require_loss
from noisydml.memory.features import FeatureMemory
from noisydml.memory.state import KeepsPrecision, require_state_in_range
from noisydml.pml.batch import Batch
from noisydml.wrappers.checks import (
    ValueCheck,
    in_range,
    make_batch,
    raise_first,
    require_width,
    value_checks,
    within_limits,
)
from noisydml.wrappers.decision import Decision, Judgement
from noisydml.wrappers.ranks import agree_across_ranks

_is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # older torch has none
_backward_pass = getattr(torch._C, "_current_graph_task_id", lambda: -1)  # -1 outside of any


class LossWrapper(KeepsPrecision, ABC):
    """Base of all wrappers: a loss around a loss, called like one of pytorch-metric-learning.

    A subclass overrides up to six methods. ``judge`` decides about a batch and changes nothing,
    ``value`` is the loss that follows from the judgement, and ``commit`` writes state once the
    wrapped loss has returned; ``run`` calls the three in this order. ``own_checks`` refuses bad
    arguments before, and ``own_parameters`` names the parameters that serve only to judge.

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

    # Whether ``judge`` calls no loss and takes any numbers, so that a GPU may judge a batch before
    # the host knows whether its values are good: it then waits once, when all of that is under way.
    judges_anything: ClassVar[bool] = False
    _read_at_once = ("cpu",)

    # Whether every rank calls the wrapped loss with all ranks' rows, so that its state is shared.
    same_on_all_ranks: bool = False

    def __init__(self, loss: Callable[..., Any], *, validate_args: bool = True) -> None:
        super().__init__()
        require_loss("loss", loss)
        pml.refuse_unlabelled(loss)
        pml.refuse_distributed(loss)
        self.loss: Any = loss
        self.validate_args = validate_args
        self.decision: Decision | None = None
        self._ranks_agree = False
        self._passes_without_graph = 0  # since the last training step
        self._unread: list[ValueCheck] = []  # of a batch that is being judged
        # Training calls that have returned, other changes of state, and calls in eval mode with a
        # graph since the last training call: what the ranks have to have in common.
        self._changes = self._eval_calls = 0
        self._refreshed = 0  # what tells of the samples that ``refresh`` was given on this rank
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            LossWrapper._loaded
        )
        self._num_classes, self._loss_width = pml.embedding_shape(loss)  # None where any will do
        if isinstance(loss, nn.Module) and not isinstance(loss, LossWrapper):
            unsaved = pml.UnsavedState(loss)
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
            ref_emb: (R, D) embeddings to compare the batch with, as in PML. Never filtered, unless
                they have no labels of their own: then row i is of sample i, and goes with it.
            ref_labels: (R,) their labels; None, or ``labels`` itself, for those of the batch.
            sample_weight: (B,) weights, not negative; multiplied with the wrapper's own.
            sample_ids: (B,) positions of the samples in the data set.

        Returns:
            0-dim tensor: ``(weight * per_sample).mean()`` over the samples kept. In eval mode the
            wrapped loss's own value. With no sample (left), a zero that has a graph.

        Raises:
            TypeError: if an argument is no tensor of that kind of dtype.
            ValueError: if shapes do not fit, or a value is NaN, infinite or out of its range: a
                negative weight, a label that has no class, an id or a pair that there is not.
                Nothing has changed then.
            RuntimeError: if the ranks of ``torch.distributed`` are not at the same step.

        Without gradients (``torch.no_grad``) a batch is judged, and no state changes. A graph of
        ``torch.compile`` ends before this call and begins anew after it.
        """
        call = self._eager
        if _is_compiling():  # as a decorator, disable would import the compiler with the package
            call = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
        return call(
            embeddings, labels, indices_tuple, ref_emb, ref_labels, sample_weight, sample_ids
        )

    def _eager(self, embeddings: Tensor, *arguments: Any) -> Tensor:
        self._refuse_second_call()
        batch = self._checked(embeddings, *arguments)
        self._prepare(batch.embeddings.device)
        value = self.run(batch)
        if self._trains():
            self._changes += is_training_step()
        elif torch.is_grad_enabled() and batch.embeddings.requires_grad:
            self._eval_calls += 1
        return value

    def _refuse_second_call(self) -> None:
        """In ``torch.utils.checkpoint`` a batch comes again in the backward pass.

        Its first call must not have written any state, or it is judged by another one now. With
        ``use_reentrant=True`` the first call has no graph and writes none.
        """
        if not self._trains() or all(type(w).commit is LossWrapper.commit for w in self._chain()):
            return
        if not is_training_step():
            self._passes_without_graph += 1
        elif _backward_pass() < 0:
            self._passes_without_graph = 0
        elif self._passes_without_graph > 0:
            self._passes_without_graph -= 1
        else:
            raise RuntimeError(
                f"{type(self).__name__} was called a second time, in the backward pass: a wrapper "
                "with state cannot be inside torch.utils.checkpoint, but for use_reentrant=True"
            )

    def run(self, batch: Batch) -> Tensor:
        """Loss of a batch that has been checked; wrappers call this on one another."""
        if not self.training:
            self.decision = Decision.trusting(batch)
            return call_loss(self.loss, batch)
        with torch.autocast(batch.embeddings.device.type, enabled=False):
            judgement = self.judge(batch)
        unread, self._unread = self._unread, []
        raise_first(unread)
        value, own_loss = self.value(batch, judgement), judgement.own_loss
        if own_loss is not None and own_loss.requires_grad:
            own_loss = own_loss.to(value.dtype)
            value = value + (own_loss - own_loss.detach())  # its gradient, not its value
        if is_training_step():
            self.commit(batch, judgement)
        self.decision = judgement.decision
        return value

    @abstractmethod
    def judge(self, batch: Batch) -> Judgement:
        """Decide about a batch without changing any state; autocast is off."""

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        """The loss that follows from a judgement; by default the wrapped loss of the batch."""
        return call_loss(self.loss, batch)

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        """Write the state that follows from a batch, in place; by default there is none."""

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        """What this wrapper asks of the values of a batch; raises for types and shapes."""
        return []

    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that serve only to judge the samples."""
        return []

    def status(self) -> str:
        """What it waits for before it can judge, for people; empty where it does not."""
        return ""

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

    def _chain(self) -> Iterator[LossWrapper]:
        """This wrapper and those inside it."""
        loss: Any = self
        while isinstance(loss, LossWrapper):
            yield loss
            loss = loss.loss

    @property
    def _innermost(self) -> Any:
        """The loss in the middle, which is no wrapper."""
        *_, last = self._chain()
        return last.loss

    def _checked(self, embeddings: Tensor, *arguments: Any) -> Batch:
        batch, error = None, None
        try:
            batch = make_batch(embeddings, *arguments)
            checks = self._checks(batch)
            checks = [*value_checks(batch), *checks] if self.validate_args else []
            if distributed.world_size() > 1:
                self._refuse_overwritten()
            if self._reads_late(batch):
                self._unread, batch = checks, within_limits(batch, checks)
            else:
                self._unread = []
                raise_first(checks)
        except Exception as refusal:  # of any kind: the other ranks wait to hear of it
            error = refusal
        if distributed.world_size() > 1 and self._trains():
            self._agree(error, batch)
        if error is not None:
            raise error
        assert batch is not None
        return replace(batch, check_values=self.validate_args)

    def _refuse_overwritten(self) -> None:
        """DistributedDataParallel gives all ranks the buffers of rank 0, with its part."""
        outside = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]
        if outside is not None and not {*self._parts()}.isdisjoint(outside.modules()):
            raise RuntimeError(
                "the loss must not be inside of DistributedDataParallel with shard=True: it gives "
                "all ranks the part of rank 0. Put it around the model alone"
            )

    def _reads_late(self, batch: Batch) -> bool:
        """Whether it is read after ``judge`` what the checks say; never in the first call."""
        if not (self.judges_anything and self.training) or distributed.world_size() > 1:
            return False
        return self.decision is not None and batch.device.type not in self._read_at_once

    def _trains(self) -> bool:
        """Whether any wrapper of the nest changes its state."""
        return any(wrapper.training for wrapper in self._chain())

    def _agree(self, error: Exception | None, batch: Batch | None) -> None:
        """Raise on all ranks unless they have all come to the same call in the same way."""
        chain = list(self._chain())
        eval_calls, self._eval_calls = self._eval_calls, 0
        self._ranks_agree = agree_across_ranks(
            error,
            batch,
            modes=[wrapper.training for wrapper in chain],
            eval_calls=eval_calls,
            changes=sum(wrapper._changes for wrapper in chain),
            refreshed=sum(wrapper._refreshed for wrapper in chain),
            agreed=all(wrapper._ranks_agree for wrapper in chain),
            alone=not self._parts(),
        )

    def _parts(self) -> list[FeatureMemory]:
        """The memories of which this rank holds a part."""
        return [m for m in self.modules() if isinstance(m, FeatureMemory) and m.ranks > 1]

    def refuse_values(self, state: dict[str, Any], prefix: str) -> None:
        """Raise ValueError for statistics that are not finite."""
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.is_floating_point():
                require_state_in_range(f"{prefix}{name}", state.get(f"{prefix}{name}"))

    def _loaded(self, _: Any) -> None:
        """After a state was loaded, be it on one rank alone, all take over that of rank 0."""
        self._ranks_agree, self._refreshed = False, 0

    def _checks(self, batch: Batch) -> list[ValueCheck]:
        """Those of this wrapper and of all that is inside it."""
        own = self.own_checks(batch) if self.training else []
        return own + self._loss_checks(batch)

    def _loss_checks(self, batch: Batch) -> list[ValueCheck]:
        """What is wrapped asks for."""
        if isinstance(self.loss, LossWrapper):
            return self.loss._checks(batch)
        require_width(batch, self._loss_width, "the wrapped loss is made for")
        if self._num_classes is None:
            return []
        what = "the classes of the wrapped loss"
        return [in_range("labels", batch.labels, self._num_classes, what)]

    @torch.inference_mode(False)  # what is moved must be good for training, too
    def _prepare(self, device: torch.device) -> None:
        """On first use: all state where the embeddings are, and the same on all ranks."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.device != device:
                self.to(device)
        if self._trains() and not self._ranks_agree and distributed.world_size() > 1:
            chain = list(self._chain())
            for memory in self._parts():
                memory.agree()  # or raises, before anything is written
            for wrapper in chain:
                distributed.broadcast_from_first([*wrapper.buffers(recurse=False)])
                for child in wrapper.children():
                    if child is not wrapper.loss:
                        distributed.take_over_from_first(child)
            leaf = self._innermost
            if isinstance(leaf, nn.Module) and any(each.same_on_all_ranks for each in chain):
                distributed.take_over_from_first(leaf)
            for wrapper in chain:
                wrapper._ranks_agree, wrapper._changes = True, 0


def is_training_step() -> bool:
    """Whether a call in train mode is a step, whose batch is remembered: whether it has a graph.

    A pass without gradients, such as a validation before which nobody called ``eval``, is judged
    and leaves no trace.
    """
    return torch.is_grad_enabled()


def call_loss(loss: Callable[..., Any], batch: Batch) -> Tensor:
    """Value of what a wrapper wraps, be it another wrapper or the user's loss.

    The user's loss is never called with an empty batch; a wrapper may be, as it may have to take
    part in a collective.
    """
    if isinstance(loss, LossWrapper):
        return loss.run(replace(batch, nested=True))
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
