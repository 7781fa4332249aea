"""What it costs to weight a loss by the confidence in each label.

Timed: Otsu's threshold, Lambert's W, the confidence and the weighting. They stand beside

* the loss itself: pytorch-metric-learning's MultiSimilarityLoss, forward and backward;
* the usual way to compute the same confidences: a NumPy loop over all thresholds and
  ``scipy.special.lambertw``, with the losses copied to the host and the result copied back.

Every repeat times everything once, in a new order, and gives one ratio; the table has the median
of the ratios and, in brackets, the lowest and the highest. Milliseconds are for scale only. Give
it no more threads than there are idle cores: torch's threads wait for the slowest at every step.

    python examples/benchmarks/confidence_cost.py
    python examples/benchmarks/confidence_cost.py --threads 1 --sizes 64 360 --repeats 51
"""

import argparse
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytorch_metric_learning
import scipy.special
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss, ProxyNCALoss
from torch import Tensor

import noisydml
from noisydml import pml
from noisydml.functional import confidence, gaussian_mixture_threshold, otsu_threshold, proxy_nca
from noisydml.pml.batch import Batch

WIDTH = 512
SAMPLES_PER_CLASS = 4
WRONG_LABELS = 0.3
LAM = 0.1
# A measurement shorter than this is repeated within the repeat, for the clock's sake.
LEAST_SECONDS = 0.02


def otsu_loop(losses: np.ndarray) -> float:
    """ProcSim's Algorithm 1 as it is usually written."""
    ordered = np.sort(losses)
    best, threshold = math.inf, math.inf
    for candidate in (ordered[1:-2] + ordered[2:-1]) / 2:
        low, high = losses[losses < candidate], losses[losses >= candidate]
        cost = sum(len(group) * np.var(group) for group in (low, high) if len(group))
        if cost < best:
            best, threshold = cost, candidate
    return threshold


def usual_confidence(losses: Tensor) -> Tensor:
    """The confidences by way of the host."""
    values = losses.cpu().numpy()
    excess = np.maximum(values - otsu_loop(values), 0) / (2 * LAM)
    sigma = np.exp(-scipy.special.lambertw(excess).real)
    return torch.from_numpy(sigma).to(losses.device)


def our_confidence(losses: Tensor) -> Tensor:
    return confidence(losses, otsu_threshold(losses), LAM)


def noisy_batch(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings in clusters, labels of which some are wrong, and one proxy per class."""
    generator = torch.Generator().manual_seed(0)
    classes = size // SAMPLES_PER_CLASS
    proxies = torch.randn(classes, WIDTH, generator=generator)
    labels = torch.arange(size) // SAMPLES_PER_CLASS
    embeddings = proxies[labels] + torch.randn(size, WIDTH, generator=generator)
    wrong = torch.rand(size, generator=generator) < WRONG_LABELS
    others = torch.randint(classes, (size,), generator=generator)
    labels = torch.where(wrong, others, labels)
    return embeddings.to(device).requires_grad_(), labels.to(device), proxies.to(device)


def tasks(size: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    embeddings, labels, proxies = noisy_batch(size, device)
    # The dtype that the wrapper computes thresholds and confidences in.
    losses = proxy_nca(embeddings, labels, proxies).detach().double()
    batch = Batch(embeddings, labels)
    weighted_batch = replace(batch, sample_weight=our_confidence(losses))
    loss_fn = MultiSimilarityLoss()
    wrapper = noisydml.ConfidenceWeightedLoss(
        MultiSimilarityLoss(), ProxyNCALoss(len(proxies), WIDTH).to(device), lam=LAM
    )

    difference = (our_confidence(losses) - usual_confidence(losses)).abs().max().item()
    if not difference < 1e-9:
        raise SystemExit(f"the two ways disagree by {difference} at B = {size}")

    def train(loss: Callable[[], Tensor]) -> None:
        embeddings.grad = None
        wrapper.zero_grad()
        loss().backward()

    return {
        "loss": lambda: train(lambda: loss_fn(embeddings, labels)),
        "weighted loss": lambda: train(lambda: pml.call(loss_fn, weighted_batch)),
        "wrapper": lambda: train(lambda: wrapper(embeddings, labels)),
        "otsu": lambda: otsu_threshold(losses),
        "mixture": lambda: gaussian_mixture_threshold(losses),
        "confidence": lambda: our_confidence(losses),
        "otsu loop": lambda: otsu_loop(losses.cpu().numpy()),
        "usual confidence": lambda: usual_confidence(losses),
    }


def seconds(task: Callable[[], object], times: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        task()
    synchronize(device)
    return (time.perf_counter() - start) / times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(size: int, repeats: int, device: torch.device) -> list[dict[str, float]]:
    """Seconds of every task, once per repeat."""
    todo = tasks(size, device)
    times = {}
    for name, task in todo.items():
        task()  # the first call pays for what later ones find ready
        times[name] = max(1, math.ceil(LEAST_SECONDS / seconds(task, 1, device)))
    order = random.Random(0)
    results = []
    for _ in range(repeats):
        names = order.sample(list(todo), len(todo))
        results.append({name: seconds(todo[name], times[name], device) for name in names})
    return results


def ratios(spent: dict[str, float]) -> dict[str, float]:
    loss = spent["loss"]
    scoring = spent["confidence"] / loss
    weighting = (spent["weighted loss"] - loss) / loss
    return {
        "extra": scoring + weighting,
        "scoring": scoring,
        "weighting": weighting,
        "wrapper": spent["wrapper"] / loss,
        "mixture": spent["mixture"] / loss,
        "otsu": spent["otsu loop"] / spent["otsu"],
        "usual": spent["usual confidence"] / spent["confidence"],
    }


CELL = 33
COLUMNS = {
    "extra": "extra/loss",
    "scoring": "scoring/loss",
    "weighting": "weighting/loss",
    "wrapper": "wrapper/loss",
    "mixture": "mixture/loss",
    "otsu": "loop/Otsu",
    "usual": "usual/scoring",
}
LEGEND = """\
extra/loss      Otsu + Lambert W + confidence + weighting, over the bare loss
scoring/loss    of that, the confidences: Otsu + Lambert W
weighting/loss  of that, the weighted loss less the bare one; near 0 it can fall below by noise
wrapper/loss    a whole ConfidenceWeightedLoss, its Proxy-NCA loss and its checks included
mixture/loss    the threshold by a Gaussian mixture in the place of Otsu's
loop/Otsu       the NumPy loop of Algorithm 1 over otsu_threshold
usual/scoring   the loop and SciPy's lambertw by way of the host, over our confidences"""


def spread(values: list[float]) -> str:
    """Median with lowest and highest, to three digits."""

    def short(value: float) -> str:
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"

    return f"{short(statistics.median(values))} [{short(min(values))} to {short(max(values))}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 360, 1024, 4096])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--short", action="store_true", help="two sizes and 3 repeats, in seconds")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.sizes, arguments.repeats = [64, 360], 3
    torch.set_num_threads(arguments.threads)
    # No optimiser moves the proxies here, as the wrapper would rightly remark.
    warnings.filterwarnings("ignore", "the proxies of the confidence loss")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"

    print(
        f"{where}, threads: {arguments.threads}, torch {torch.__version__}, "
        f"pytorch-metric-learning {pytorch_metric_learning.__version__}, "
        f"D = {WIDTH}, float32, {arguments.repeats} repeats\n"
    )
    header = [f"{'B':>5}  {'loss, ms':>9}", *(f"{title:>{CELL}}" for title in COLUMNS.values())]
    print("".join(header))
    for size in arguments.sizes:
        results = measure(size, arguments.repeats, device)
        scale = 1000 * statistics.median(result["loss"] for result in results)
        columns = [ratios(result) for result in results]
        cells = [spread([column[name] for column in columns]) for name in COLUMNS]
        print(
            f"{size:>5}  {scale:>9.2f}" + "".join(f"{cell:>{CELL}}" for cell in cells), flush=True
        )
    print(f"\n{LEGEND}")


if __name__ == "__main__":
    main()
