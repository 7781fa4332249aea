"""Promise 7: state follows the input, and scoring never asks the host.

Without a GPU the second half is shown with fake tensors "on" CUDA: an ``.item()``, a boolean mask
or a tensor left on the CPU raises there. With a GPU the real thing runs too, and so do the tests of
this folder that take a ``device``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    CLASSES,
    SAMPLES,
    WIDTH,
    build,
    chain,
    every_case_and_leaf,
    leaf_for,
    make_batch,
    naming,
)
from fake_cuda import fake_cuda
from torch import nn

import noisydml
from noisydml.memory.judge import judge_labels
from noisydml.wrappers.checks import make_batch as pack

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def fake_arguments(device: torch.device) -> dict[str, Any]:
    return {
        "embeddings": torch.randn(24, WIDTH, device=device),
        "labels": torch.randint(CLASSES, (24,), device=device),
        "sample_ids": torch.arange(24, device=device),
    }


def moved(wrapper: nn.Module, device: torch.device) -> nn.Module:
    """Module.to() wants a real CUDA; moving the fake tensors one by one does not."""
    for module in wrapper.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
        for name, parameter in module._parameters.items():
            module._parameters[name] = nn.Parameter(parameter.detach().to(device))
    return wrapper


SCORES_ITSELF = [name for name, case in CASES.items() if not case.syncs]
CUTS_NOTHING = [n for n in SCORES_ITSELF if not CASES[n].drops and not CASES[n].pairs_only]


@pytest.mark.parametrize("case", SCORES_ITSELF)
def test_scoring_never_asks_the_host(case: str) -> None:
    with fake_cuda() as device:
        wrapper = moved(build(case, leaf_for(case, "cross_entropy")), device)
        batch = pack(**fake_arguments(device))
        for each in chain(wrapper):
            judgement = each.judge(batch)
            assert judgement.decision.weight.device.type == "cuda"
            assert judgement.decision.keep.shape == (24,)


@pytest.mark.parametrize("case", CUTS_NOTHING)
def test_a_whole_step_without_a_cut_never_asks_the_host(case: str) -> None:
    with fake_cuda() as device:
        wrapper = moved(build(case, leaf_for(case, "cross_entropy"), validate_args=False), device)
        value = wrapper(**fake_arguments(device))
        assert value.device.type == "cuda"


@pytest.mark.parametrize("case", SCORES_ITSELF)
def test_checks_are_made_before_the_state_has_moved(case: str) -> None:
    with fake_cuda() as device:
        batch = pack(**fake_arguments(device))
        for each in chain(build(case, leaf_for(case, "cross_entropy"))):
            for check in each.own_checks(batch):
                assert check.bad.device == device


def test_the_proof_can_fail() -> None:
    """Fake tensors do raise for what the two tests above forbid."""
    with fake_cuda() as device:
        values = torch.randn(24, device=device)
        for forbidden in (
            lambda: values.sum().item(),
            lambda: values[values > 0],
            lambda: values + torch.randn(24),
        ):
            with pytest.raises(Exception, match=r"_local_scalar_dense|nonzero|device"):
                forbidden()


@contextmanager
def homeless() -> Iterator[set[str]]:
    """Where the package makes a tensor without saying on which device.

    Or of numbers of Python's, for which CUDA waits, as ``torch.full`` does not. State that is being
    constructed follows the module's ``to``.
    """
    found: set[str] = set()

    def noting(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        copies = name in ("tensor", "as_tensor")

        def noted(*args: Any, **kwargs: Any) -> Any:
            of_numbers = copies and not isinstance(args[0], torch.Tensor)
            if of_numbers or "device" not in kwargs:
                caller = sys._getframe(1)
                path, function = Path(caller.f_code.co_filename), caller.f_code.co_name
                if PACKAGE in path.parents and function != "__init__":
                    found.add(f"{path.name}:{caller.f_lineno}")
            return make(*args, **kwargs)

        return noted

    with pytest.MonkeyPatch.context() as patched:
        for name in FACTORIES:
            patched.setattr(torch, name, noting(name, getattr(torch, name)))
        yield found


PACKAGE = Path(noisydml.__file__).parent
FACTORIES = (
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand",
    "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_new_tensor_says_where_it_is(case: str) -> None:
    """Also behind a synchronisation, which fakes cannot pass."""
    wrapper = build(case, leaf_for(case, "multi_similarity"))
    everyone = make_batch(SAMPLES)
    with homeless() as found:
        for seed in range(4):  # in the fourth a mixer mixes
            wrapper(**make_batch(seed=seed)).backward()
        for each in chain(wrapper):
            if hasattr(each, "end_epoch"):
                each.end_epoch()
            if hasattr(each, "refresh"):
                each.refresh(everyone["embeddings"], everyone["labels"], everyone["sample_ids"])
    assert found == set()


def test_every_new_tensor_of_the_judge_says_where_it_is() -> None:
    batch = make_batch(SAMPLES)
    with homeless() as found:
        judge_labels(batch["embeddings"].detach(), batch["labels"])
    assert found == set()


@pytest.mark.parametrize("case", CASES)
def test_state_follows_the_input_on_first_use(case: str) -> None:
    wrapper = build(case, leaf_for(case, "cross_entropy"), validate_args=False)
    wrapper._prepare(torch.device("meta"))  # what every call does with its embeddings' device
    assert all(t.device.type == "meta" for t in (*wrapper.parameters(), *wrapper.buffers()))


@needs_cuda
def test_parameters_stay_the_same_objects_when_they_move() -> None:
    """An optimiser that was given them before the first step keeps training them."""
    wrapper = build("confidence")
    parameters = list(wrapper.parameters())
    wrapper(**make_batch(device="cuda"))
    assert all(p.device.type == "cuda" for p in wrapper.parameters())
    assert all(a is b for a, b in zip(parameters, wrapper.parameters(), strict=True))


@needs_cuda
@pytest.mark.parametrize(("case", "leaf"), every_case_and_leaf("cross_batch_memory"))
def test_cuda_agrees_with_the_cpu(case: str, leaf: str) -> None:
    on_cpu, on_cuda = build(case, leaf), build(case, leaf)
    for seed in range(3):
        arguments, moved = make_batch(seed=seed), make_batch(seed=seed, device="cuda")
        expected, value = on_cpu(**arguments), on_cuda(**moved)
        assert value.device.type == "cuda"
        expected.backward()
        value.backward()
        with naming(f"step {seed}"):
            torch.testing.assert_close(value.cpu(), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                moved["embeddings"].grad.cpu(), arguments["embeddings"].grad, rtol=1e-3, atol=1e-5
            )
        for a, b in zip(chain(on_cpu), chain(on_cuda), strict=True):
            with naming(f"step {seed}, {type(a).__name__}"):
                assert torch.equal(a.decision.keep, b.decision.keep.cpu())
                weight = b.decision.weight.double().cpu()
                torch.testing.assert_close(a.decision.weight.double(), weight, rtol=1e-3, atol=1e-5)


@needs_cuda
@pytest.mark.parametrize("case", CUTS_NOTHING)
def test_cuda_steps_without_synchronisation(case: str) -> None:
    wrapper = build(case, leaf_for(case, "cross_entropy"), validate_args=False).cuda()
    arguments = {name: value.detach() for name, value in make_batch(device="cuda").items()}
    wrapper(**arguments)
    try:
        with warnings.catch_warnings():  # of the mode being a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        wrapper(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
