"""A trainer of pytorch-metric-learning: it takes a wrapper where it takes a loss.

    python examples/frameworks/pml_trainer.py

Half of the labels of the training digits are wrong. The wrapped loss is 0 in the first epoch: the
labels are judged by what the untrained network makes of the digits, before any is trained on.
"""

import argparse
import logging

import noisy_digits
import torch
from pytorch_metric_learning import losses, trainers
from torch.utils.data import TensorDataset

import noisydml

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=20)
options = parser.parse_args()
torch.set_num_threads(1)
logging.basicConfig(level=logging.WARNING)
train, test = noisy_digits.load()
images_and_labels = TensorDataset(*train.tensors[:2])


def detach(trainer):
    """Takes the graph off the losses, which the trainer's bar of progress formats next.

    To format a tensor that needs a gradient is deprecated: newer versions of torch warn.
    """
    for name, loss in trainer.losses.items():
        trainer.losses[name] = loss.detach()


def run(loss_fn):
    model = noisy_digits.network()
    trainers.MetricLossOnly(
        models={"trunk": model},
        optimizers={"trunk_optimizer": torch.optim.Adam(model.parameters(), lr=1e-3)},
        batch_size=noisy_digits.BATCH_SIZE,
        loss_funcs={"metric_loss": loss_fn},
        dataset=images_and_labels,
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        end_of_iteration_hook=detach,
    ).train(num_epochs=options.epochs)
    return noisy_digits.scores(model, test)


loss_fn = losses.MultiSimilarityLoss()
plain = run(loss_fn)

loss_fn = noisydml.robust(loss_fn, dataset_size=len(train))  # the one line
wrapped = run(loss_fn)
print(f"plain loss:  {plain}\nrobust:      {wrapped}")
print(noisydml.decision_summary(loss_fn))
