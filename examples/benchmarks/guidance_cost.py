"""What language guidance costs beside a step of the network.

    python examples/benchmarks/guidance_cost.py            # counted, on any machine
    python examples/benchmarks/guidance_cost.py --measure  # and timed, on the device there is

Counted are the multiplications and additions of matrix products and convolutions, forward and
backward, by torch's own counter on tensors without data: of ResNet-50 on 224 x 224 pixels, and of
LanguageGuidance at the paper's B = 360, D = 512, k = 5 and E = 512 (CLIP ViT-B/32). Beside them
stand the formulas: 6 B^2 D for the cosines of the embeddings and their gradient (three products),
2 B^2 k E for those of the language embeddings (one, as it has no gradient).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from noisydml import LanguageGuidance

# (output channels of the inner convolutions, blocks, stride) of ResNet-50's four stages
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != 4 * width:
            convolution = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.skip = nn.Sequential(convolution, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet50(embedding_size: int) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    channels = 64
    for width, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(channels, embedding_size))


class Step:
    """A forward and backward pass of either, on one device."""

    def __init__(self, batch: int, width: int, parts: int, language: int, device: str) -> None:
        with torch.device(device):
            self.network = resnet50(width)
        self.images = torch.empty(batch, 3, 224, 224, device=device).normal_()
        self.embeddings = torch.empty(batch, width, device=device).normal_().requires_grad_()
        self.guidance = LanguageGuidance(
            torch.empty(batch, parts, language, device=device).normal_(), by="sample_ids"
        )
        self.ids = torch.arange(batch, device=device)

    def of_network(self) -> None:
        self.network(self.images).sum().backward()

    def of_guidance(self) -> None:
        self.guidance(self.embeddings, self.ids // 4, self.ids).mean().backward()


def counted(work: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def seconds(work: Callable[[], None], device: str, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=360)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--parts", type=int, default=5, help="k, pseudo-classes")
    parser.add_argument("--language", type=int, default=512, help="E, width of their embeddings")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    sizes = (options.batch, options.width, options.parts, options.language)

    with FakeTensorMode():
        step = Step(*sizes, device="cpu")
        network, guidance = counted(step.of_network), counted(step.of_guidance)
    formula = 2 * options.batch**2 * (3 * options.width + options.parts * options.language)
    print(f"ResNet-50: {network / 1e9:.0f} GFLOP, guidance: {guidance / 1e9:.2f} GFLOP")
    print(f"guidance by formula: {formula / 1e9:.2f} GFLOP")
    print(f"share: {guidance / network:.4%}")
    if not guidance < 0.05 * network:
        raise SystemExit("guidance costs more than 5 % of a step")

    if options.measure:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        step = Step(*sizes, device=device)
        times = [seconds(w, device, options.repeats) for w in (step.of_network, step.of_guidance)]
        low, middle = 0, options.repeats // 2
        for name, found in zip(("ResNet-50", "guidance"), times, strict=True):
            spread = f"{1e3 * found[low]:.2f} to {1e3 * found[-1]:.2f}"
            print(f"{name} on {device}: {1e3 * found[middle]:.2f} ms ({spread})")
        print(f"share: {times[1][middle] / times[0][middle]:.3%}")


if __name__ == "__main__":
    main()
