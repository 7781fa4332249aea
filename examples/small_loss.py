"""Small-loss selection on handwritten digits of which 40 % of the labels are wrong.

    python examples/small_loss.py
    python examples/small_loss.py --by-itself

The second line judges by the pair loss that is trained instead of a Proxy-NCA loss beside it.
"""

import argparse

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noisydml import SmallLossFilter

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--by-itself", action="store_true")
options = parser.parse_args()
torch.manual_seed(0)

# Two thirds to train on, with wrong labels; the others to test on.
digits, targets = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
digits, targets = digits.float() / 16, targets.long()
train, test = torch.randperm(len(digits)).split([1200, len(digits) - 1200])
is_wrong = torch.rand(len(train)) < 0.4
labels = torch.where(is_wrong, targets[train] + torch.randint(1, 10, (len(train),)), targets[train])
dataset = TensorDataset(digits[train], labels % 10, is_wrong)
loader = DataLoader(dataset, batch_size=60, shuffle=True)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
loss_fn = SmallLossFilter(
    losses.MultiSimilarityLoss(),
    noise_rate=0.4,
    ramp=10 * len(loader),
    score_loss=None if options.by_itself else losses.ProxyNCALoss(10, 32),
)
optimizer = torch.optim.Adam(
    [{"params": model.parameters()}, *loss_fn.parameter_groups(lr=1e-3, proxy_lr=3e-2)], lr=1e-3
)
for epoch in range(options.epochs):
    dropped, wrong = 0, 0
    for images, given, noisy in loader:
        loss = loss_fn(model(images), given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        drop = ~loss_fn.decision.keep
        dropped, wrong = dropped + int(drop.sum()), wrong + int(noisy[drop].sum())
    with torch.no_grad():
        embeddings = nn.functional.normalize(model(digits[test]))
    score = AccuracyCalculator(include=("precision_at_1",), device=torch.device("cpu"))
    p_at_1 = score.get_accuracy(embeddings, targets[test])["precision_at_1"]
    rate = 100 * float(loss_fn.decision.noise_rate)
    print(
        f"epoch {epoch + 1:2}: P@1 {100 * p_at_1:.1f}, {rate:.0f} % to be dropped, "
        f"dropped {dropped}, {100 * wrong / max(1, dropped):.0f} % of them wrong"
    )
