"""Distrusted samples as negatives: handwritten digits of which 40 % of the labels are wrong.

    python examples/selected_interactions.py
    python examples/selected_interactions.py --drop

The second line drops the same samples instead.
"""

import argparse

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noisydml import KNNDenoiser, SelectedInteractions

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--drop", action="store_true")
options = parser.parse_args()
torch.manual_seed(0)

# Two thirds to train on, with wrong labels; the others to test on.
digits, targets = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
digits, targets = digits.float() / 16, targets.long()
train, test = torch.randperm(len(digits)).split([1200, len(digits) - 1200])
is_wrong = torch.rand(len(train)) < 0.4
labels = torch.where(is_wrong, targets[train] + torch.randint(1, 10, (len(train),)), targets[train])
dataset = TensorDataset(digits[train], labels % 10, torch.arange(len(train)))

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=len(train))
if not options.drop:
    loss_fn = SelectedInteractions(loss_fn)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(options.epochs):
    distrusted, wrong = 0, 0
    for images, given, ids in DataLoader(dataset, batch_size=60, shuffle=True):
        loss = loss_fn(model(images), given, sample_ids=ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        flagged = loss_fn.decision.weight == 0
        distrusted += int(flagged.sum())
        wrong += int(is_wrong[ids][flagged].sum())
    with torch.no_grad():
        embeddings = nn.functional.normalize(model(digits[test]))
    score = AccuracyCalculator(include=("precision_at_1",), device=torch.device("cpu"))
    p_at_1 = score.get_accuracy(embeddings, targets[test])["precision_at_1"]
    print(
        f"epoch {epoch + 1:2}: P@1 {100 * p_at_1:.1f}, distrusted {distrusted}, "
        f"{100 * wrong / max(1, distrusted):.0f} % of them wrong"
    )
