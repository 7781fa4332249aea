"""PRISM around a cross-batch memory: handwritten digits of which 40 % of the labels are wrong.

    python examples/prism_xbm.py
    python examples/prism_xbm.py --epochs 12 --checkpoint outputs/prism_xbm.pt

Run the second line again with more epochs and it goes on where it stopped.
"""

import argparse
from pathlib import Path

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noisydml import PRISMFilter

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--checkpoint", type=Path)
options = parser.parse_args()
torch.manual_seed(0)

# Two thirds to train on, with wrong labels; the others to test on.
digits, targets = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
digits, targets = digits.float() / 16, targets.long()
train, test = torch.randperm(len(digits)).split([1200, len(digits) - 1200])
wrong = torch.rand(len(train)) < 0.4
labels = torch.where(wrong, torch.randint(10, (len(train),)), targets[train])
is_wrong = labels != targets[train]

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
xbm = losses.CrossBatchMemory(losses.ContrastiveLoss(), embedding_size=32, memory_size=512)
loss_fn = PRISMFilter(xbm, num_classes=10, embedding_size=32, memory_size=len(train))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

saved = [model, loss_fn, optimizer]
first = 0
if options.checkpoint is not None and options.checkpoint.exists():
    *states, first = torch.load(options.checkpoint, weights_only=True)
    for part, state in zip(saved, states, strict=True):
        part.load_state_dict(state)

dataset = TensorDataset(digits[train], labels, torch.arange(len(train)))
for epoch in range(first, options.epochs):
    torch.manual_seed(epoch)  # a resumed run shuffles like one that was never stopped
    dropped, right = 0, 0
    for images, given, ids in DataLoader(dataset, batch_size=60, shuffle=True):
        loss = loss_fn(model(images), given, sample_ids=ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        drop = ~loss_fn.decision.keep
        dropped, right = dropped + int(drop.sum()), right + int(is_wrong[ids][drop].sum())
    with torch.no_grad():
        embeddings = nn.functional.normalize(model(digits[test]))
    score = AccuracyCalculator(include=("precision_at_1",), device=torch.device("cpu"))
    p_at_1 = score.get_accuracy(embeddings, targets[test])["precision_at_1"]
    rate = float(loss_fn.decision.noise_rate)
    print(
        f"epoch {epoch + 1:2}: P@1 {100 * p_at_1:.1f}, noise rate {100 * rate:.0f} % estimated, "
        f"dropped {dropped}, {100 * right / max(1, dropped):.0f} % of them wrong"
    )
    if options.checkpoint is not None:
        options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save([*(part.state_dict() for part in saved), epoch + 1], options.checkpoint)
