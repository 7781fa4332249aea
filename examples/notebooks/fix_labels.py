# %% [markdown]
# # Find and fix wrong labels
#
# Wrong labels can be found without any training, in embeddings that you already have. Here the
# embeddings are the pixels of handwritten digits, which come with scikit-learn; put those of your
# own network in their place. 15 % of the labels are made wrong, so that we can count what is
# found.
#
# It takes about ten seconds on a CPU.

# %%
import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

import noisydml
from noisydml import plot

torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 70

digits = load_digits()
train, test = train_test_split(np.arange(1797), test_size=0.3, random_state=0)
pixels, truth = digits.data[train], digits.target[train]
noisy = noisydml.noise.uniform(truth, rate=0.15, seed=0)
given = noisy.labels

# %% [markdown]
# ## Find
#
# `find_label_issues` asks for no noise rate. Every label is judged by class centers and by the
# sample's nearest neighbours, the sample itself left out, and labels held out say how wrong labels
# come about.

# %%
issues = noisydml.find_label_issues(pixels, given)
print(issues.summary(top=5))

# %%
found = np.zeros(len(given), dtype=bool)
found[issues.issues.numpy()] = True
right = (found & noisy.is_noisy).sum()
print(
    f"{right} of {found.sum()} labels found are wrong, {right} of {noisy.is_noisy.sum()} are found"
)

# %% [markdown]
# The most suspicious ones, with the given and the suggested label:

# %%
pictures = (255 - 15.9375 * digits.images[train]).astype(np.uint8)  # black on white
figure = plot.contact_sheet(issues, pictures, rows=3, columns=8)
# %% [markdown]
# ## Look at them, and decide
#
# A list of suspects is worth what a person makes of it. `to_html` writes one file that any
# browser opens, offline: each suspect with its picture, its nearest neighbours and *their*
# labels, keys to accept or reject the suggestion, and a download, `corrected_labels.csv`.

# %%
folder = Path(tempfile.mkdtemp())
issues.to_html(folder / "fix.html", images=pictures, title="Digits to check")
size = (folder / "fix.html").stat().st_size
print(f"fix.html: {len(issues.issues)} suspects in {size / 1e6:.1f} MB")

# %% [markdown]
# A notebook cannot press the keys. In the place of a person who knows digits we take the labels
# of the data set, and write the file that the page would: a suggestion is accepted where it is
# right.

# %%
columns = ["index", "given", "corrected", "decision"]
with open(folder / "corrected_labels.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    for i in issues.issues.tolist():
        if issues.suggested_labels[i] == truth[i]:
            decision = "accepted"
        else:
            decision = "rejected" if given[i] == truth[i] else "other"
        writer.writerow([i, given[i], truth[i], decision])

print((folder / "corrected_labels.csv").read_text()[:140])

# %% [markdown]
# ## Back into training
#
# The file has a line for each suspect; all others keep their label.

# %%
fixed, left_out = noisydml.apply_corrections(given, folder / "corrected_labels.csv")
assert len(left_out) == 0  # samples that were removed on the page

# Without a person: take every suggestion.
suggested, _ = issues.corrected_labels(min_support=0)

for name, labels in {"given": given, "all suggestions": suggested, "checked": fixed}.items():
    print(f"{name:16s} {(labels != truth).sum():4d} of {len(truth)} labels are wrong")

# %% [markdown]
# What it is worth, with a classifier that feels every wrong label, the nearest neighbour, on
# digits that it has not seen. Three splits into training and test digits, with noise drawn anew
# for each:

# %%
rows = {name: [] for name in ("given", "suspects left out", "all suggestions", "true labels")}
for seed in range(3):
    train, test = train_test_split(np.arange(1797), test_size=0.3, random_state=seed)
    x, y = digits.data[train], digits.target[train]
    noise = noisydml.noise.uniform(y, rate=0.15, seed=seed)
    result = noisydml.find_label_issues(x, noise.labels)
    suspect = np.zeros(len(y), dtype=bool)
    suspect[result.issues.numpy()] = True
    choices = {
        "given": (x, noise.labels),
        "suspects left out": (x[~suspect], noise.labels[~suspect]),
        "all suggestions": (x, np.where(suspect, result.suggested_labels.numpy(), noise.labels)),
        "true labels": (x, y),
    }
    for name, (inputs, labels) in choices.items():
        nearest = KNeighborsClassifier(n_neighbors=1).fit(inputs, labels)
        rows[name].append(100 * nearest.score(digits.data[test], digits.target[test]))

for name, accuracy in rows.items():
    print(f"{name:18s} {np.mean(accuracy):5.1f} ± {np.std(accuracy, ddof=1):.1f} % right")

# %% [markdown]
# ## What is not found
#
# The digits look alike within a class, and the wrong labels are scattered, which is the easy
# case. Labels that are wrong in a systematic way support one another. Here the class next to the
# right one takes 45 % of each class's labels, and then exactly half of them. Two halves are as
# large, and which of them is the mistake stands in no picture: how many are wrong comes out, but
# which half it is is chance.

# %%
for rate in (0.45, 0.5):
    flipped = noisydml.noise.pair_flip(truth, rate=rate, seed=0)
    hard = noisydml.find_label_issues(pixels, flipped.labels)
    wrong = flipped.is_noisy[hard.issues.numpy()]
    print(f"{rate:.0%}: rate {hard.noise_rate:.2f}, {len(wrong)} found,", end=" ")
    print(f"{wrong.mean():.0%} of them wrong;", end=" ")
    print(f"{wrong.sum() / flipped.is_noisy.sum():.0%} of the wrong labels are found")

# %% [markdown]
# While training, `noisydml.LabelAudit` collects what a wrapper decides about each sample and
# gives the same kind of table. The pages "Which labels are wrong" and "Fix the labels" of the
# documentation have both.
