"""PrototypicalMixer on handwritten digits of which a part of the training labels is wrong.

    python examples/titan.py
    python examples/titan.py --epochs 3

It prints, for the plain loss and for TITAN, how often the nearest neighbour of a test digit is of
its class, and at the end which labels TITAN has changed.
"""

import argparse

import torch
from pytorch_metric_learning.losses import SupConLoss
from sklearn.datasets import load_digits
from torch import nn

from noisydml import PrototypicalMixer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--noise", type=float, default=0.4, help="share of wrong training labels")
options = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
true = torch.tensor(digits.target)
test = torch.arange(len(true)) % 3 == 0
x, y, x_test, y_test = images[~test], true[~test], images[test], true[test]
wrong = torch.rand(len(y)) < options.noise
given = torch.where(wrong, (y + torch.randint(1, 10, y.shape)) % 10, y)


def train(mixes: bool) -> tuple[float, nn.Module]:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
    head = nn.Linear(128, 32)
    if mixes:
        loss_fn = PrototypicalMixer(
            SupConLoss(temperature=0.5), 10, 128, head, memory_size=len(y),
            warmup=2, cycles=options.epochs, max_retrieved=60,
        )  # fmt: skip
    else:
        loss_fn = SupConLoss(temperature=0.5)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(options.epochs):
        for ids in torch.randperm(len(y)).split(64):
            features = body(x[ids])
            if mixes:
                loss = loss_fn(features, given[ids], sample_ids=ids)
            else:
                loss = loss_fn(head(features), given[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        z, z_test = (nn.functional.normalize(head(body(part))) for part in (x, x_test))
    nearest = (z_test @ z.T).argmax(dim=1)
    return 100 * (y[nearest] == y_test).float().mean().item(), loss_fn


plain, _ = train(mixes=False)
ours, loss_fn = train(mixes=True)
print(f"P@1 after {options.epochs} epochs: plain loss {plain:.1f} %, TITAN {ours:.1f} %")
ids, old, new, cycle = loss_fn.refined_labels()
labels = given.index_copy(0, ids, new)
print(
    f"{len(ids)} labels changed; right labels before {100 * (given == y).float().mean():.1f} %, "
    f"now {100 * (labels == y).float().mean():.1f} %"
)
for row in range(min(5, len(ids))):
    print(f"sample {ids[row]}: {old[row]} -> {new[row]} in cycle {cycle[row]}")
