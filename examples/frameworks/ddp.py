"""DistributedDataParallel under torchrun: pair losses that see, and judge, the rows of all ranks.

    torchrun --nproc-per-node 2 examples/frameworks/ddp.py
    python examples/frameworks/ddp.py

Half of the labels of the training digits are wrong. Both lines train on the same global batches,
and the wrapped loss comes out the same but for rounding: two ranks are as good as one process. The
plain loss sees the pairs within each rank's own rows only, as is usual.
"""

import argparse
import os

import noisy_digits
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import noisydml


def plain():
    return losses.MultiSimilarityLoss()


def wrapped():
    """The one line: the filter outside, the gathering of what is left inside."""
    return noisydml.robust(noisydml.GatheredLoss(plain()), dataset_size=1200)


def train(loss_fn, epochs):
    """Train on this rank's share of every batch; the model, the same on all ranks."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    device = torch.device("cuda", rank) if torch.cuda.device_count() >= ranks else "cpu"
    dataset, _ = noisy_digits.load()
    sampler = DistributedSampler(dataset, ranks, rank)
    loader = DataLoader(dataset, noisy_digits.BATCH_SIZE // ranks, sampler=sampler)
    model = noisy_digits.network().to(device)
    parallel = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for images, labels, ids in loader:
            images, labels, ids = images.to(device), labels.to(device), ids.to(device)
            extra = {"sample_ids": ids} if isinstance(loss_fn, noisydml.LossWrapper) else {}
            loss = loss_fn(parallel(images), labels, **extra)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        cuda = torch.cuda.device_count() >= ranks
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")
    _, test = noisy_digits.load()
    for name, loss_fn in (("plain loss", plain()), ("robust", wrapped())):
        scores = noisy_digits.scores(train(loss_fn, options.epochs), test)
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(f"{ranks} ranks, {name + ':':12} {scores}")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
