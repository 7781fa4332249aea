"""Promise 8: bad input is refused, by name, before any state changes."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    CLASSES,
    REFUSED,
    SAMPLES,
    WIDTH,
    assert_equal,
    assert_same_state,
    build,
    chain,
    leaf_for,
    make_batch,
    naming,
    proxies,
    spy,
    state_of,
)
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from noisydml import ConfidenceWeightedLoss, GroundTruthFilter
from noisydml.wrappers.base import LossWrapper

Change = Callable[[dict[str, Any]], dict[str, Any]]


def put(name: str, position: int, value: float) -> Change:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        spoilt = arguments[name].detach().clone()
        spoilt[position] = value
        return {**arguments, name: spoilt}

    return change


def replaced(**changes: Any) -> Change:
    return lambda arguments: {**arguments, **changes}


ONES = torch.ones(24, dtype=torch.long)
PAIRS = (ONES, ONES, ONES, ONES)

# name -> (what is done to a good call, error, the argument that the message must name)
BAD: dict[str, tuple[Change, type[Exception], str]] = {
    "embeddings are a list": (replaced(embeddings=[[1.0]]), TypeError, "embeddings"),
    "embeddings are None": (replaced(embeddings=None), TypeError, "embeddings"),
    "embeddings are integers": (replaced(embeddings=torch.ones(24, 16).int()), TypeError, "embed"),
    "embeddings are 1-d": (replaced(embeddings=torch.ones(24)), ValueError, "embeddings"),
    "embeddings are 3-d": (replaced(embeddings=torch.ones(24, 4, 4)), ValueError, "embeddings"),
    "a NaN": (put("embeddings", 3, math.nan), ValueError, "embeddings"),
    "an infinity": (put("embeddings", 23, -math.inf), ValueError, "embeddings"),
    "labels are a list": (replaced(labels=[0] * 24), TypeError, "labels"),
    "labels are floats": (replaced(labels=torch.zeros(24)), TypeError, "labels"),
    "labels are bools": (replaced(labels=torch.zeros(24).bool()), TypeError, "labels"),
    "labels are 2-d": (replaced(labels=torch.zeros(24, 1).long()), ValueError, "labels"),
    "too few labels": (replaced(labels=torch.zeros(23).long()), ValueError, "labels"),
    "too many labels": (replaced(labels=torch.zeros(25).long()), ValueError, "labels"),
    "ids are floats": (replaced(sample_ids=torch.zeros(24)), TypeError, "sample_ids"),
    "ids are 2-d": (replaced(sample_ids=torch.zeros(24, 1).long()), ValueError, "sample_ids"),
    "too few ids": (replaced(sample_ids=torch.zeros(3).long()), ValueError, "sample_ids"),
    "a negative id": (put("sample_ids", 0, -1), ValueError, "sample_ids"),
    "weights are a list": (replaced(sample_weight=[1.0] * 24), TypeError, "sample_weight"),
    "weights are 2-d": (replaced(sample_weight=torch.ones(24, 1)), ValueError, "sample_weight"),
    "too few weights": (replaced(sample_weight=torch.ones(3)), ValueError, "sample_weight"),
    "a negative weight": (replaced(sample_weight=-torch.ones(24)), ValueError, "sample_weight"),
    "a NaN weight": (replaced(sample_weight=torch.ones(24) / 0 * 0), ValueError, "sample_weight"),
    "an index tuple of 2": (replaced(indices_tuple=PAIRS[:2]), ValueError, "indices_tuple"),
    "indices are no tuple": (replaced(indices_tuple=ONES), ValueError, "indices_tuple"),
    "indices are floats": (replaced(indices_tuple=(torch.ones(2),) * 3), TypeError, "indices_tu"),
    "uneven pairs": (replaced(indices_tuple=(ONES[:2], *PAIRS[1:])), ValueError, "indices_tuple"),
    "an index beyond": (replaced(indices_tuple=(ONES * 24,) * 3), ValueError, "indices_tuple"),
    "a negative index": (replaced(indices_tuple=(-ONES,) * 3), ValueError, "indices_tuple"),
    "ref labels alone": (replaced(ref_labels=ONES), ValueError, "ref_labels"),
    "ref_emb of another width": (replaced(ref_emb=torch.ones(24, 8)), ValueError, "ref_emb"),
    "ref_emb with a NaN": (
        replaced(ref_emb=torch.full((24, 16), math.nan), ref_labels=ONES),
        ValueError,
        "ref_emb",
    ),
    "too few ref labels": (
        replaced(ref_emb=torch.ones(24, 16), ref_labels=ONES[:3]),
        ValueError,
        "ref_labels",
    ),
}


def assert_refused(wrapper: Any, arguments: dict[str, Any], error: type, name: str) -> None:
    before, decisions = state_of(wrapper), [each.decision for each in chain(wrapper)]
    with pytest.raises(error, match=name) as caught:
        wrapper(**arguments)
    assert type(caught.value) is error
    assert_same_state(before, wrapper)
    for each, decision in zip(chain(wrapper), decisions, strict=True):
        assert each.decision is decision
    REFUSED["calls"] += 1


def moved(value: Any, device: str) -> Any:
    """What there is of tensors in it on that device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return tuple(moved(each, device) for each in value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("case", CASES)
def test_refused_and_nothing_lost(case: str, device: str) -> None:
    """Before the first good call and after it; and it goes on as if nothing had been."""
    wrapper, twin = build(case), build(case)
    for call in range(2):
        for bad, (change, error, name) in BAD.items():
            arguments = {k: moved(v, device) for k, v in change(make_batch()).items()}
            with naming(f"{bad}, after {call} good calls"):
                assert_refused(wrapper, arguments, error, name)
        arguments = make_batch(seed=call, device=device)
        assert_equal(wrapper(**arguments), twin(**arguments))


JUDGES_ANYTHING = [name for name in CASES if build(name).judges_anything]


@pytest.mark.parametrize("case", JUDGES_ANYTHING)
def test_a_gpu_judges_before_it_refuses_and_nothing_is_lost(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the host asks once all is under way; a CPU shows an index out of range."""
    monkeypatch.setattr(LossWrapper, "_read_at_once", ())
    judged = []
    judge = type(build(case)).judge
    monkeypatch.setattr(
        type(build(case)), "judge", lambda self, batch: (judged.append(1), judge(self, batch))[1]
    )
    beyond = {"an id beyond": (put("sample_ids", 5, 10**6), ValueError, "sample_ids")}
    if CASES[case].has_classes:
        beyond["a label beyond"] = (put("labels", 5, 10**6), ValueError, "labels")
    if "prism" in case.split("(")[0] or "top_r" in case:
        del beyond["an id beyond"]  # a ring takes any
    wrapper, twin = build(case), build(case)
    for call in range(3):
        arguments = make_batch(seed=call)
        assert_equal(wrapper(**arguments), twin(**arguments))
        for bad, (change, error, name) in {**BAD, **beyond}.items():
            with naming(f"{bad}, after {call + 1} good calls"):
                assert_refused(wrapper, change(make_batch()), error, name)
    before = len(judged)
    with pytest.raises(ValueError, match="embeddings"):
        wrapper(**BAD["a NaN"][0](make_batch()))
    assert len(judged) > before  # it was judged, and then refused


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.has_classes])
def test_labels_out_of_range(case: str, device: str) -> None:
    # KNNDenoiser takes any labels that are not negative, and says so first where it is outermost.
    message = rf"labels (.* \[0, {CLASSES}\)|must not be negative)"
    for label in (-1, CLASSES, 10**6):
        with naming(label):
            arguments = put("labels", 5, label)(make_batch(device=device))
            assert_refused(build(case), arguments, ValueError, message)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if not case.pairs_only])
def test_labels_beyond_the_proxies_of_the_wrapped_loss(case: str) -> None:
    for train in (True, False):
        wrapper = CASES[case].make(losses.ProxyNCALoss(CLASSES, WIDTH)).train(train)
        arguments = put("labels", 5, CLASSES)(make_batch())
        with naming(f"train={train}"):
            assert_refused(wrapper, arguments, ValueError, rf"labels .* \[0, {CLASSES}\)")


@pytest.mark.parametrize("case", [name for name in CASES if "confidence" in name])
def test_embeddings_of_another_width_than_the_proxies(case: str) -> None:
    change = replaced(embeddings=torch.ones(24, WIDTH + 1))
    assert_refused(build(case), change(make_batch()), ValueError, "embeddings must be as wide")


@pytest.mark.parametrize("case", [n for n in CASES if "ground_truth" in n or "regular" in n])
def test_ids_missing_or_beyond(case: str) -> None:
    missing = {k: v for k, v in make_batch().items() if k != "sample_ids"}
    assert_refused(build(case), missing, ValueError, "sample_ids")
    change = put("sample_ids", 2, SAMPLES)
    assert_refused(
        build(case), change(make_batch()), ValueError, rf"sample_ids .* \[0, {SAMPLES}\)"
    )


@pytest.mark.parametrize("case", CASES)
def test_a_wrapped_loss_that_raises_leaves_the_state(case: str) -> None:
    fails = False

    def sometimes(_: torch.Tensor) -> None:
        if fails:
            raise RuntimeError("on purpose")

    torch.manual_seed(0)
    wrapper = CASES[case].make(spy(case, sometimes))
    wrapper(**make_batch(seed=1))
    fails = True
    assert_refused(wrapper, make_batch(seed=2), RuntimeError, "on purpose")
    fails = False
    after = wrapper(**make_batch(seed=2))
    torch.manual_seed(0)
    twin = CASES[case].make(spy(case, sometimes))
    twin(**make_batch(seed=1))
    assert torch.equal(after, twin(**make_batch(seed=2)))


@pytest.mark.parametrize("case", CASES)
def test_value_checks_can_be_switched_off_but_not_the_others(case: str) -> None:
    wrapper = build(case, leaf_for(case, "cross_entropy"), validate_args=False)
    change, _, _ = BAD["a NaN"]
    assert wrapper(**change(make_batch())).isnan() or CASES[case].drops
    for bad in ("labels are floats", "embeddings are 1-d", "too few weights"):
        change, error, name = BAD[bad]
        with naming(bad):
            assert_refused(wrapper, change(make_batch()), error, name)


@pytest.mark.parametrize(
    ("settings", "error", "name"),
    [
        ({"lam": 0.0}, ValueError, "lam"),
        ({"lam": -1.0}, ValueError, "lam"),
        ({"lam": math.nan}, ValueError, "lam"),
        ({"lam": math.inf}, ValueError, "lam"),
        ({"lam": "1"}, TypeError, "lam"),
        ({"threshold": "mean"}, ValueError, "threshold"),
        ({"threshold": math.nan}, ValueError, "threshold"),
        ({"threshold": None}, ValueError, "threshold"),
        ({"threshold": True}, ValueError, "threshold"),
        ({"decay": 1.0}, ValueError, "decay"),
        ({"decay": -0.1}, ValueError, "decay"),
        ({"warmup": -1}, ValueError, "warmup"),
        ({"warmup": 1.5}, TypeError, "warmup"),
        ({"confidence_loss": None}, TypeError, "confidence_loss"),
        ({"confidence_loss": build("confidence")}, TypeError, "confidence_loss"),
        ({"confidence_loss": losses.ProxyAnchorLoss(5, 16)}, TypeError, "ProxyAnchorLoss"),
        ({"loss": losses.ProxyAnchorLoss(5, 16)}, TypeError, "ProxyAnchorLoss"),
        ({"loss": losses.VICRegLoss()}, TypeError, "VICRegLoss takes no labels"),
        ({"loss": 3}, TypeError, "loss must be callable, got int"),
        ({"loss": losses.ContrastiveLoss}, TypeError, "loss must be a loss, got the class Contr"),
        ({"confidence_loss": losses.ProxyNCALoss}, TypeError, "confidence_loss .* the class Prox"),
    ],
)
def test_impossible_settings_of_confidence(
    settings: dict[str, Any], error: type, name: str
) -> None:
    good = {"loss": losses.ContrastiveLoss(), "confidence_loss": proxies(), "lam": 1.0}
    arguments = {**good, **settings}
    with pytest.raises(error, match=name):
        ConfidenceWeightedLoss(arguments.pop("loss"), arguments.pop("confidence_loss"), **arguments)


@pytest.mark.parametrize(
    ("is_noisy", "error"),
    [
        (torch.zeros(4), TypeError),
        ([True, False], TypeError),
        (torch.zeros(4, 1).bool(), ValueError),
    ],
)
def test_impossible_settings_of_ground_truth(is_noisy: Any, error: type) -> None:
    with pytest.raises(error, match="is_noisy"):
        GroundTruthFilter(losses.ContrastiveLoss(), is_noisy)


def test_an_unweightable_loss_is_refused_by_the_first_call_even_in_warmup() -> None:
    wrapper = ConfidenceWeightedLoss(losses.PNPLoss(), proxies(), lam=1.0, warmup=100)
    assert_refused(wrapper, make_batch(), TypeError, "PNPLoss cannot be")


def test_a_threshold_that_returns_a_vector_is_refused() -> None:
    wrapper = build("confidence")
    wrapper.threshold = lambda values: values
    assert_refused(wrapper, make_batch(), ValueError, "threshold")


@pytest.mark.parametrize("case", CASES)
def test_the_arguments_themselves_are_not_changed(case: str) -> None:
    arguments = {**make_batch(), "sample_weight": torch.rand(24)}
    copies = {name: copy.deepcopy(value.detach()) for name, value in arguments.items()}
    build(case)(**arguments)
    for name, value in arguments.items():
        assert torch.equal(value, copies[name]), name


def junk(rng: random.Random) -> Any:
    """Something of a random kind, shape, dtype and content: mostly wrong, sometimes right."""
    shape = rng.choice([(24,), (24, WIDTH), (24, 1), (0,), (0, WIDTH), (), (1,), (23,), (3, 4, 5)])
    dtype = rng.choice(
        [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    )
    value = torch.full(shape, rng.choice([0, 1, 3, 200]), dtype=dtype)
    if dtype.is_floating_point and value.numel() and rng.random() < 0.3:
        value.view(-1)[-1] = rng.choice([math.nan, math.inf, -math.inf, -1.0])
    return rng.choice(
        [value, value, value, None, "text", 3, value.tolist(), (value, value, value), (value,) * 4]
    )


@pytest.mark.parametrize("case", CASES)
def test_fuzz(case: str) -> None:
    """Whatever is passed, a call returns a finite number or is refused and leaves no trace."""
    rng = random.Random(0)
    wrapper = build(case)
    wrapper(**make_batch(seed=1))
    names = ["embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels", "sample_weight"]
    refused = 0
    for call in range(150):
        arguments = make_batch()
        changed = rng.sample([*names, "sample_ids"], rng.choice([1, 1, 2]))
        arguments |= {name: junk(rng) for name in changed}
        before, decisions = state_of(wrapper), [each.decision for each in chain(wrapper)]
        with naming(f"call {call}, of {changed}"):
            try:
                value = wrapper(**arguments)
            except (TypeError, ValueError):
                refused += 1
                assert_same_state(before, wrapper)
                assert [each.decision for each in chain(wrapper)] == decisions
            else:
                assert value.isfinite()
    assert 50 < refused < 150


def test_an_inner_wrapper_that_trains_inside_one_that_does_not_is_checked() -> None:
    wrapper = build("confidence(ground_truth)").eval()
    wrapper.loss.train()
    missing = {k: v for k, v in make_batch().items() if k != "sample_ids"}
    assert_refused(wrapper, missing, ValueError, "sample_ids")
    wrapper(**make_batch())
    assert not wrapper.loss.decision.keep.all()
    assert wrapper.decision.keep.all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_small_integers_do_not_wrap_around(dtype: torch.dtype) -> None:
    wrapper = ConfidenceWeightedLoss(
        losses.ContrastiveLoss(), losses.ProxyNCALoss(300, WIDTH), lam=1.0
    )
    arguments = make_batch()
    wrapper(arguments["embeddings"], (arguments["labels"] + 100).to(dtype))


def test_complex_weights() -> None:
    arguments = {**make_batch(), "sample_weight": torch.ones(24, dtype=torch.complex64)}
    assert_refused(build("ground_truth"), arguments, TypeError, "sample_weight must be real")


KINDS_OF_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.reshape(len(x), -1).to_sparse_csr(),
    "meta": lambda x: x.to("meta"),
    "mkldnn": lambda x: x.float().to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x.float().reshape(len(x), -1))),
    "jagged": lambda x: torch.nested.nested_tensor(
        list(x.float().reshape(len(x), -1)), layout=torch.jagged
    ),
    "float8": lambda x: x.float().to(torch.float8_e4m3fn),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "few bits": lambda x: torch.empty(x.shape, dtype=torch.uint4),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("leaf", ["multi_similarity", "cross_batch_memory"])
@pytest.mark.parametrize("case", CASES)
def test_any_other_kind_of_tensor_is_refused_by_name(case: str, leaf: str) -> None:
    """A CrossBatchMemory has enqueued nothing either."""
    wrapper = build(case, leaf_for(case, leaf))
    wrapper(**make_batch(seed=1))
    good = {**make_batch(), "sample_weight": torch.ones(24)}
    if leaf == "multi_similarity":
        good |= {"ref_emb": torch.randn(24, WIDTH), "ref_labels": ONES}
    good = {name: value.detach() for name, value in good.items()}
    for name in good:
        for kind, convert in KINDS_OF_TENSORS.items():
            with naming(f"{name}: {kind}"):
                bad = {**good, name: convert(good[name])}
                assert_refused(wrapper, bad, TypeError, name)
    for kind, convert in KINDS_OF_TENSORS.items():
        with naming(f"indices_tuple: {kind}"):
            bad = {**make_batch(), "indices_tuple": (*PAIRS[:3], convert(ONES))}
            assert_refused(wrapper, bad, TypeError, r"indices_tuple\[3\]")


def test_what_cannot_be_wrapped_is_refused_at_construction() -> None:
    distributed = DistributedLossWrapper(losses.ContrastiveLoss())
    for case in ("ground_truth", "confidence", "prism", "knn", "small_loss", "gathered", "mixer"):
        with naming(case), pytest.raises(TypeError, match="GatheredLoss"):
            CASES[case].make(distributed)
    with pytest.raises(TypeError, match="GatheredLoss"):
        GroundTruthFilter(losses.MultipleLosses([distributed]), torch.zeros(3).bool())
    with pytest.raises(TypeError, match="GatheredLoss"):
        ConfidenceWeightedLoss(losses.ContrastiveLoss(), distributed, lam=1.0)
    for case in ("ground_truth", "prism", "knn", "small_loss", "ground_truth(confidence)"):
        with naming(case), pytest.raises(TypeError, match="SmoothAPLoss needs classes of equal"):
            CASES[case].make(losses.SmoothAPLoss())
    for loss in (losses.SmoothAPLoss(), losses.MultipleLosses([losses.SmoothAPLoss()])):
        with pytest.raises(TypeError, match=r"SmoothAPLoss .* cannot take mixed embeddings"):
            CASES["mixer"].make(loss)
    CASES["confidence"].make(losses.SmoothAPLoss())


@pytest.mark.parametrize("case", ["ground_truth", "confidence", "mixer", "super_loss"])
def test_a_batch_larger_than_a_cross_batch_memory(case: str) -> None:
    queue = losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, 30 if case == "mixer" else 12)
    wrapper = CASES[case].make(queue)
    assert_refused(wrapper, make_batch(), ValueError, "CrossBatchMemory must be as large as a ba")


def test_features_too_large_to_be_squared() -> None:
    assert_refused(
        build("mixer"), put("embeddings", 3, 1e20)(make_batch()), ValueError, "embeddings must be"
    )
