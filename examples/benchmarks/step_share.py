"""The cost table: of a training step, beside what one would take instead, and beside the limit.

    python examples/benchmarks/step_share.py --threads 1

A step is forward, loss, backward and optimiser. Timed on the CPU are those of a small network,
three blocks of 48 convolutions on images of 28 pixels, with a MultiSimilarityLoss, batches of 128
and half of the labels wrong. Each wrapper has seen an epoch, so that its memory is full. Printed
are medians with quartiles of

* own: the step of the wrapper around a loss that costs nothing, from embeddings on, less that of
  this loss by itself, over the whole step with the wrapper;
* more: (step with the wrapper - step without) / step with the wrapper, of steps that follow one
  another. A filter makes the wrapped loss cheaper, so that it can be below own, and below 0;
* over it: a part of the wrapper over what computes it otherwise: the confidences over a NumPy loop
  and SciPy by way of the host, find_label_issues over cleanlab (Datalab on the features);
* over the limit: own over what the method cannot do without, on the rows of the batch;
* rows: how many rows of a batch the wrapped loss sees.

Of a ResNet-50 at 224 pixels, with embeddings of width 512, the operations in products of matrices
and in convolutions are counted: the wrapper's own, over these and those of the network. What
happens once an epoch (an index, prototypes) is not in the medians. One thread is timed on the
processor, so that other programs do not count; for more threads the machine has to be idle.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import confidence_cost
import faiss
import judge_quality
import numpy as np
import torch
from knn_cost import bare_search
from networks import convolutions
from pytorch_metric_learning import losses
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from noisydml import (
    ConfidenceWeightedLoss,
    JudgeFilter,
    KNNDenoiser,
    LossWrapper,
    PRISMFilter,
    PrototypicalMixer,
    SmallLossFilter,
    SuperLoss,
    noise,
    robust,
)
from noisydml.functional import proxy_nca

BATCH, PER_CLASS, BATCHES, UNTIMED = 128, 4, 16, 3


class Size(NamedTuple):
    """Of a data set, and of what a network makes of an image: features, by its head embeddings."""

    classes: int
    samples: int
    features: int = 432
    width: int = 64


SIZES = [Size(964, 19_280), Size(98, 8_054)]  # Omniglot's and Cars196's, to train on
MIXER = "`PrototypicalMixer`"
HEADS = ["C", "N", "", "rows", "own, %", "more, %", "instead", "over it", "limit",
         "over the limit", "ResNet-50, own, %"]  # fmt: skip


def wrappers(loss: nn.Module, size: Size, head: nn.Module) -> dict[str, LossWrapper]:
    classes, memory_size, features, width = size
    for_prism = (loss, classes, width)
    proxies, other_proxies = (losses.ProxyNCALoss(classes, width) for _ in range(2))
    return {
        "`PRISMFilter`, rate given": PRISMFilter(
            *for_prism, memory_size=memory_size, noise_rate=0.5
        ),
        "`PRISMFilter`, rate estimated": PRISMFilter(*for_prism, memory_size=memory_size),
        "`KNNDenoiser`": KNNDenoiser(loss, memory_size=memory_size),
        "`robust`": robust(loss, classes, width, dataset_size=memory_size),
        "`ConfidenceWeightedLoss`": ConfidenceWeightedLoss(loss, proxies, lam=0.1),
        "`SmallLossFilter`": SmallLossFilter(
            loss, noise_rate=0.5, ramp=0, score_loss=other_proxies
        ),
        "`SuperLoss`": SuperLoss(loss, lam=0.25),
        MIXER: PrototypicalMixer(loss, classes, features, head, memory_size=memory_size),
    }


class Free(nn.Module):
    """A loss for each sample that costs next to nothing."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return embeddings.sum(dim=1)


class Step:
    """A training step with the samples of some ids."""

    def __init__(self, network: nn.Module, loss: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        self.network, self.loss, self.inputs, self.labels = network, loss, inputs, labels
        parameters = list(nn.ModuleList([network, loss]).parameters())
        # A rate of 0: the network stays the one whose features the memories hold.
        self.optimizer = torch.optim.Adam(parameters, lr=0.0) if parameters else None

    def __call__(self, ids: Tensor) -> None:
        # Features, which have two dimensions, stand for a network that wants their gradient.
        inputs = self.inputs[ids].requires_grad_(self.inputs.ndim == 2)
        keywords = {"sample_ids": ids} if isinstance(self.loss, LossWrapper) else {}
        value = self.loss(self.network(inputs), self.labels[ids], **keywords).mean()
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        value.backward()
        if self.optimizer is not None:
            self.optimizer.step()


def see_an_epoch(
    wrapper: LossWrapper, features: Tensor, labels: Tensor, batch: int = BATCH
) -> None:
    """With gradients enabled, though nobody asks for one: without, nothing is remembered."""
    if isinstance(wrapper, JudgeFilter):  # it judges once a pass: a step only looks numbers up
        said = {"judged_labels": labels, "probability": torch.rand(len(labels)).double()}
        wrapper.load_state_dict({**wrapper.state_dict(), **said, "counters.phase": torch.tensor(2)})
        return
    for ids in torch.arange(len(labels), device=labels.device).split(batch):
        wrapper(features[ids], labels[ids], sample_ids=ids)


def own_steps(
    size: Size, head: nn.Module, features: Tensor, labels: Tensor, batch: int = BATCH
) -> dict[str, tuple[Step, Step]]:
    """Those of the wrappers around the free loss, and of the free loss itself."""
    with torch.no_grad():
        embeddings = head(features)
    steps = {}
    for name, wrapper in wrappers(Free(), size, head).items():
        inputs, rest = (features, head) if name == MIXER else (embeddings, nn.Identity())
        see_an_epoch(wrapper, inputs, labels, batch)
        own = Step(nn.Identity(), wrapper, inputs, labels)
        steps[name] = own, Step(rest, Free(), inputs, labels)
    return steps


class Beside(NamedTuple):
    """What stands beside a wrapper: in words, and to be timed if it can be."""

    instead: str = "-"
    ours: Callable[[Tensor], object] | None = None  # of the wrapper, what is compared with it
    other: Callable[[Tensor], object] | None = None
    limit: str = "-"
    least: Callable[[Tensor], object] | None = None


# PRISM, Table 4, and Table 1 of its supplement: SOP, CARS and CUB, 5,000 iterations on a GPU.
PUBLISHED = "its code: 5 to 10 % more training time (published, GPU)"


def beside(name: str, size: Size, inputs: Tensor, labels: Tensor) -> Beside:
    """Tasks that take the ids of a batch; ``inputs`` are what the wrapper is called with."""
    centers = torch.randn(size.classes, inputs.shape[1])
    if "PRISM" in name:
        limit = "`logsumexp(x @ centers.T)`"
        least = lambda ids: torch.logsumexp(inputs[ids] @ centers.T, 1)  # noqa: E731
        return Beside(PUBLISHED, limit=limit, least=least)
    if "KNN" in name:
        search = bare_search(inputs)
        least = lambda ids: search(nn.functional.normalize(inputs[ids]))  # noqa: E731
        return Beside(limit="FAISS' search, exact, k = 200", least=least)
    if name in ("`ConfidenceWeightedLoss`", "`SmallLossFilter`"):
        proxies = centers.clone().requires_grad_()

        def judged(ids: Tensor) -> Tensor:
            return proxy_nca(inputs[ids], labels[ids], proxies)

        losses_of = judged(torch.arange(size.samples)).detach().double()
        found = Beside(
            limit="Proxy-NCA and its gradient", least=lambda ids: judged(ids).sum().backward()
        )
        if "Small" in name:
            return found
        return found._replace(
            instead="loop of Alg. 1 and SciPy",
            ours=lambda ids: confidence_cost.our_confidence(losses_of[ids]),
            other=lambda ids: confidence_cost.usual_confidence(losses_of[ids]),
        )
    if name == MIXER:
        least = lambda ids: (  # noqa: E731
            (inputs[ids].requires_grad_() @ centers.T).sum().backward()
        )
        return Beside(limit="`z @ means.T` and its gradient", least=least)
    return Beside()


def noisy_images(size: Size) -> tuple[Tensor, Tensor]:
    """Images of a random pattern for each class; half of the labels are drawn anew."""
    truth, other = torch.randint(size.classes, (2, size.samples))
    images = torch.randn(size.classes, 1, 28, 28)[truth]
    images += 0.5 * torch.randn(images.shape)
    return images, torch.where(torch.rand(size.samples) < 0.5, other, truth)


def draw(labels: Tensor, batch: int = BATCH) -> Tensor:
    """(B,) ids, as many of each class by the given labels."""
    classes = torch.randperm(int(labels.max()) + 1).repeat(2)[: batch // PER_CLASS]
    members = [(labels == c).nonzero().squeeze(1) for c in classes]
    return torch.cat([rows[torch.randint(len(rows), (PER_CLASS,))] for rows in members])


def measure(size: Size, repeats: int) -> tuple[dict[str, np.ndarray], dict[str, Beside]]:
    """(repeats, 8) for each wrapper, and what stands beside it.

    Seconds without and with it, of its own two, and of what stands beside it (ours, other, least;
    NaN for nothing); and rows.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def seconds(step: Callable[[Tensor], object] | None, ids: Tensor) -> float:
        if step is None:
            return math.nan
        start = clock()
        step(ids)
        return clock() - start

    images, labels = noisy_images(size)
    batches = [draw(labels) for _ in range(BATCHES)]
    body, head = convolutions(1, 28, size.width)
    network = nn.Sequential(body.to(memory_format=torch.channels_last), head)
    with torch.no_grad():
        features = torch.cat([body(part) for part in images.split(BATCH)])
    plain = Step(network, losses.MultiSimilarityLoss(), images, labels)
    steps = own_steps(size, head, features, labels)
    whole = {}
    for name, wrapper in wrappers(losses.MultiSimilarityLoss(), size, head).items():
        see_an_epoch(wrapper, steps[name][0].inputs, labels)
        whole[name] = Step(body if name == MIXER else network, wrapper, images, labels)
    others = {name: beside(name, size, own.inputs, labels) for name, (own, _) in steps.items()}
    results: dict[str, list[list[float]]] = {name: [] for name in steps}
    for i in tqdm(range(UNTIMED + repeats), leave=False, disable=None):
        for name, own_and_free in steps.items():
            others_of = others[name].ours, others[name].other, others[name].least
            order = (plain, whole[name], *own_and_free, *others_of)
            times = [seconds(step, batches[i % BATCHES]) for step in order]
            kept = int(whole[name].loss.decision.keep.sum())
            results[name].append([*times, 2 * kept if name == MIXER else kept])
    return {name: np.array(rows[UNTIMED:]) for name, rows in results.items()}, others


def audit_rows(repeats: int, short: bool) -> list[list[str]]:
    """find_label_issues beside cleanlab and the bare search, in turn."""
    problems = {"digits": judge_quality.Problem(*noisy_digits())}
    if not short:
        problems["Gaussians"] = judge_quality.gaussians(0)
    rows, installed = [], find_spec("cleanlab") is not None
    instead = f"cleanlab {version('cleanlab')}, Datalab" if installed else "cleanlab (not here)"
    for problem in problems.values():
        features = torch.from_numpy(problem.features)
        search = bare_search(features, k=50)
        tasks = {
            "ours": lambda p=problem: judge_quality.ours(p),
            "cleanlab": lambda p=problem: judge_quality.cleanlab(p) if installed else None,
            "search": lambda f=features, s=search: s(nn.functional.normalize(f)),
        }
        spent: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(repeats + 1):  # the first imports cleanlab, and is not counted
            for name, task in tasks.items():
                start = time.process_time()
                task()
                spent[name].append(time.process_time() - start)
        ours, other, least = (np.array(values[1:]) for values in spent.values())
        over = times(ours / other) if installed else "-"
        row = [str(len(np.unique(problem.given))), str(len(features)), "`find_label_issues`"]
        row += ["-"] * 3 + [instead, over]
        rows.append([*row, "FAISS' search of all, exact, k = 50", times(ours / least), "-"])
    return rows


def noisy_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pixels, labels = judge_quality.digits()
    return pixels, noise.uniform(labels, 0.2, seed=0).labels, labels


def resnet50(images: Tensor) -> Tensor:
    """(B, 512) embeddings, by all that is counted of the network."""

    def convolve(x: Tensor, channels: int, kernel: int, stride: int = 1) -> Tensor:
        weight = x.new_empty(channels, x.shape[1], kernel, kernel, requires_grad=True)
        return nn.functional.conv2d(x, weight, stride=stride, padding=kernel // 2)

    x = nn.functional.max_pool2d(convolve(images, 64, 7, 2), 3, 2, padding=1)
    for channels, blocks, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            stride = 1 if i else first_stride
            shortcut = x if i else convolve(x, 4 * channels, 1, stride)
            inner = convolve(convolve(x, channels, 1), channels, 3, stride)
            x = (convolve(inner, 4 * channels, 1) + shortcut).relu()
    return x.mean(dim=(2, 3)) @ x.new_empty(2048, 512, requires_grad=True)


def operations(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def own_operations(size: Size) -> dict[str, int]:
    """Of each wrapper's own step beside a ResNet-50."""
    size = size._replace(features=2048, width=512)
    features = torch.randn(size.samples, size.features)
    labels = torch.randint(size.classes, (size.samples,))
    ids = torch.randperm(size.samples)[:BATCH]
    counts = {}
    steps = own_steps(size, nn.Linear(size.features, size.width), features, labels)
    for name, (own, free) in steps.items():
        counts[name] = operations(lambda s=own: s(ids)) - operations(lambda s=free: s(ids))
        if isinstance(own.loss, KNNDenoiser):  # FAISS compares all pairs, and is not seen
            counts[name] += 2 * BATCH * size.samples * size.width
    return counts


def spread(values: np.ndarray) -> str:
    low, median, high = np.quantile(100 * values, (0.25, 0.5, 0.75))
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def times(ratios: np.ndarray) -> str:
    """Median with quartiles to two digits; "-" for what nothing stands beside."""
    if np.isnan(ratios).any():
        return "-"
    low, median, high = (f"{x:.2g}" for x in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return f"{median} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--short", action="store_true", help="400 samples, two repeats")
    options = parser.parse_args()
    sizes, repeats = ([Size(20, 400)], 2) if options.short else (SIZES, options.repeats)
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"CPU, threads: {options.threads}, torch {torch.__version__}, {repeats} repeats\n")
    print("| " + " | ".join(HEADS) + " |")
    print("|" + "---|" * len(HEADS))
    images = torch.empty(BATCH, 3, 224, 224, device="meta")
    network = operations(lambda: resnet50(images).sum().backward())
    for size in sizes:
        counts = own_operations(size)
        measured, others = measure(size, repeats)
        for name, results in measured.items():
            plain, whole, own, free, ours, other, least, rows = results.T
            own, counted = own - free, counts[name]
            cells = [*size[:2], name, f"{np.median(rows):.0f}", spread(own / whole)]
            cells += [spread((whole - plain) / whole), others[name].instead, times(ours / other)]
            cells += [others[name].limit, times(own / least)]
            cells += [f"{100 * counted / (counted + network):.2g}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    for row in audit_rows(1 if options.short else 5, options.short):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
