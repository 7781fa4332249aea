"""A training loop in plain PyTorch: one line makes its loss robust to wrong labels.

    python examples/frameworks/plain_pytorch.py

Half of the labels of the training digits are wrong. The wrapped loss is 0 in the first epoch: the
labels are judged by what the untrained network makes of the digits, before any is trained on.
"""

import argparse

import noisy_digits
import torch
from pytorch_metric_learning import losses
from torch.utils.data import DataLoader

import noisydml

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--device", default="cpu")
options = parser.parse_args()
torch.set_num_threads(1)
train, test = noisy_digits.load()


def run(loss_fn):
    model = noisy_digits.network().to(options.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(options.epochs):
        for images, labels, _ in DataLoader(train, noisy_digits.BATCH_SIZE, shuffle=True):
            images, labels = images.to(options.device), labels.to(options.device)
            loss = loss_fn(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return noisy_digits.scores(model.cpu(), test)


loss_fn = losses.MultiSimilarityLoss()
print(f"plain loss:  {run(loss_fn)}")

loss_fn = noisydml.robust(loss_fn, dataset_size=len(train))  # the one line
print(f"robust:      {run(loss_fn)}")
print(noisydml.decision_summary(loss_fn))
