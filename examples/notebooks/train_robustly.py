# %% [markdown]
# # Train robustly in one line
#
# A network learns to put pictures of the same digit close together. Of its training labels 40 %
# are wrong. We train it twice; the second time one line is different: the loss is wrapped.
#
# It takes about ten seconds on a CPU. The digits come with scikit-learn.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import noisydml
from noisydml import plot

torch.set_num_threads(1)  # small batches gain nothing from more
plt.rcParams["figure.dpi"] = 70

# %% [markdown]
# ## Digits with wrong labels
#
# `noise.uniform` replaces labels by any other class. The training sees `labels`. What is right is
# known here, but is used for the evaluation only.

# %%
images, truth = load_digits(return_X_y=True)
train, test = train_test_split(np.arange(1797), test_size=0.3, random_state=0, stratify=truth)
noisy = noisydml.noise.uniform(truth[train], rate=0.4, seed=0)
print(noisy.summary())

train_images = torch.tensor(images[train] / 16, dtype=torch.float32)
test_images = torch.tensor(images[test] / 16, dtype=torch.float32)
labels, test_labels = torch.from_numpy(noisy.labels), torch.from_numpy(truth[test])

# %%
figure, axes = plt.subplots(2, 10, figsize=(9, 2.3), layout="constrained")
for i, ax in enumerate(axes.flat):
    ax.imshow(train_images[i].reshape(8, 8), cmap="gray_r")
    ax.set_title(int(labels[i]), color="tab:red" if noisy.is_noisy[i] else "black")
    ax.axis("off")  # the titles are the labels, the wrong ones in red

# %% [markdown]
# ## A training loop
#
# It is the loop that one would write without wrong labels. `sample_ids` says which samples are in
# the batch; it is optional for most wrappers, and a loss of pytorch-metric-learning does not take
# it.


# %%
def train_network(loss_fn, epochs=20):
    """The trained network, and its MAP@R on the test digits after every epoch, in %."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    takes_ids = isinstance(loss_fn, noisydml.LossWrapper)
    curve = []
    for _ in range(epochs):
        for ids in torch.randperm(len(labels)).split(64):
            embeddings = network(train_images[ids])
            ids_too = {"sample_ids": ids} if takes_ids else {}
            loss = loss_fn(embeddings, labels[ids], **ids_too)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curve.append(map_at_r(network))
    return network, curve


def map_at_r(network):
    calculator = AccuracyCalculator(
        include=("mean_average_precision_at_r",), k="max_bin_count", device=torch.device("cpu")
    )
    with torch.no_grad():
        embeddings = nn.functional.normalize(network(test_images))
    return 100 * calculator.get_accuracy(embeddings, test_labels)["mean_average_precision_at_r"]


# %% [markdown]
# ## Before and after

# %%
plain_loss = losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)
_, plain = train_network(plain_loss)

# The one line. It says neither how many labels are wrong nor how many classes there are.
robust_loss = noisydml.robust(plain_loss, dataset_size=len(labels))
network, robust = train_network(robust_loss)

# What a perfect detector of wrong labels would reach by dropping them.
ceiling_loss = noisydml.GroundTruthFilter(plain_loss, torch.from_numpy(noisy.is_noisy))
_, ceiling = train_network(ceiling_loss)

# %%
figure, ax = plt.subplots(figsize=(6, 3.2))
curves = {"plain loss": plain, "robust": robust, "GroundTruthFilter (ceiling)": ceiling}
for name, curve in curves.items():
    ax.plot(range(1, len(curve) + 1), curve, label=name)
ax.set(xlabel="epoch", xticks=range(0, 21, 5))
ax.set(ylabel="MAP@R on the test digits, %", ylim=(0, 100))
ax.legend()
for name, curve in curves.items():
    print(f"{name:28s} MAP@R {curve[-1]:.1f} %")

# %% [markdown]
# The plain loss learns the wrong labels, too. The wrapped one collects the features of the first
# epoch, in which its loss is 0, and has all labels judged by them. From then on it drops what is
# most likely wrong, and judges again after every epoch. `robust_loss.refresh(features, labels)`
# before the first step would save that epoch.
#
# This is one seed and one kind of noise. The notebook `compare_wrappers` has more wrappers under
# five kinds, over several seeds, also where they do not help.
#
# ## What it decided
#
# After every call `loss_fn.decision` says what was made of the batch. Below, the whole training
# set is shown to the loss once more.

# %%
with torch.no_grad():
    robust_loss(network(train_images), labels, sample_ids=torch.arange(len(labels)))
decision = robust_loss.decision
print(noisydml.decision_summary(robust_loss))

dropped = ~decision.keep.numpy()
print(f"{noisy.is_noisy[dropped].mean():.1%} of the dropped labels are wrong,")
print(f"{dropped[noisy.is_noisy].mean():.1%} of the wrong labels are dropped")

# %%
figure, ax = plt.subplots(figsize=(6, 3))
plot.score_histogram(decision, is_noisy=noisy.is_noisy, ax=ax)
_ = ax.legend()
# %% [markdown]
# ## Other losses
#
# The wrapped loss may be any loss of pytorch-metric-learning, its `CrossBatchMemory`, another
# wrapper, or a function that returns one loss per sample. A classification loss:

# %%
classifier = noisydml.robust(
    losses.NormalizedSoftmaxLoss(num_classes=10, embedding_size=32), dataset_size=len(labels)
)
with torch.no_grad():
    classifier.refresh(network(train_images), labels)  # else the first epoch's loss is 0
loss = classifier(network(train_images[:64]), labels[:64], sample_ids=torch.arange(64))
print(f"loss of a batch: {loss:.2f}")

# %% [markdown]
# Its class vectors are parameters and have to be given to the optimiser:
# `*classifier.parameter_groups(lr=1e-3)`. Which wrapper to take is the subject of the page
# "Choose a wrapper" of the documentation; what to do about the labels that were found is that of
# the notebook `fix_labels`.
