"""PyTorch Lightning: a callback that logs, audits and checkpoints what a wrapper decides.

    python examples/frameworks/lightning_callback.py
    python examples/frameworks/lightning_callback.py --stop-after 5

Half of the labels of the training digits are wrong. The second line also stops a wrapped run after
five epochs, goes on from its checkpoint in a new trainer and compares it with the run that never
stopped.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import lightning
import noisy_digits
import torch
from lightning.pytorch.loggers import CSVLogger
from pytorch_metric_learning import losses
from torch.utils.data import DataLoader, DistributedSampler

import noisydml


class NoisyLabels(lightning.Callback):
    """Tells a wrapper of epochs, logs its decisions, and keeps an audit of the labels.

    The wrapper must be an attribute of the LightningModule, so that it is saved with it, and be
    called with ``sample_ids``. The audit is saved with this callback.

    Args:
        wrapper: the loss that the training step calls.
        dataset_size: number of training samples.

    Attributes:
        audit: the :class:`noisydml.LabelAudit`; ``audit.result()`` lists the suspects.
    """

    def __init__(self, wrapper: noisydml.LossWrapper, dataset_size: int) -> None:
        self.wrapper = wrapper
        self.audit = noisydml.LabelAudit(wrapper, dataset_size)

    def end_epoch(self) -> None:
        for module in self.wrapper.modules():
            if hasattr(module, "end_epoch"):
                module.end_epoch()

    def on_train_start(self, trainer, module) -> None:
        if trainer.global_step == 0:  # from now on epochs end where Lightning's end
            self.end_epoch()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # each one waits for the device
            stats = noisydml.decision_stats(self.wrapper.decision)
            module.log_dict({f"decision/{name}": value for name, value in stats.items()})

    def on_train_epoch_end(self, trainer, module) -> None:
        self.end_epoch()
        module.log("audit/suspects", float(len(self.audit.result().issues)))

    def state_dict(self):
        return self.audit.state_dict()

    def load_state_dict(self, state_dict) -> None:
        self.audit.load_state_dict(state_dict)


class Retrieval(lightning.LightningModule):
    def __init__(self, loss_fn):
        super().__init__()
        self.model, self.loss_fn = noisy_digits.network(), loss_fn

    def training_step(self, batch):
        images, labels, ids = batch
        extra = {"sample_ids": ids} if isinstance(self.loss_fn, noisydml.LossWrapper) else {}
        return self.loss_fn(self.model(images), labels, **extra)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def run(wrap, epochs, folder, checkpoint=None):
    """Train to the end, or on from a checkpoint, and write one to ``folder``."""
    train, test = noisy_digits.load()
    # Its order follows from the epoch alone, so that a resumed run has it, too.
    sampler = DistributedSampler(train, num_replicas=1, rank=0)
    loss_fn = losses.MultiSimilarityLoss()
    callbacks = []
    if wrap:
        loss_fn = noisydml.robust(loss_fn, dataset_size=len(train))  # the one line
        callbacks.append(NoisyLabels(loss_fn, len(train)))
    module = Retrieval(loss_fn)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, callbacks=callbacks,
        logger=CSVLogger(folder, flush_logs_every_n_steps=1000), log_every_n_steps=10,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(train, noisy_digits.BATCH_SIZE, sampler=sampler)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    trainer.save_checkpoint(Path(folder) / "last.ckpt")
    return module, callbacks, noisy_digits.scores(module.model, test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--stop-after", type=int, help="epochs, and resume")
    parser.add_argument("--output", default=tempfile.mkdtemp())
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    output = Path(options.output)

    _, _, plain = run(False, options.epochs, output / "plain")
    whole, (callback,), wrapped = run(True, options.epochs, output / "wrapped")
    print(f"plain loss:  {plain}\nrobust:      {wrapped}")
    print(callback.audit.result().summary())
    if options.stop_after is not None:
        run(True, options.stop_after, output / "stopped")
        resumed, (other,), _ = run(
            True, options.epochs, output / "resumed", output / "stopped" / "last.ckpt"
        )
        before = {**whole.state_dict(), **callback.state_dict()}
        after = {**resumed.state_dict(), **other.state_dict()}
        same = all(torch.equal(after[name], value) for name, value in before.items())
        found = "the same numbers" if same else "OTHER numbers"
        print(f"resumed after epoch {options.stop_after}: {found}")


if __name__ == "__main__":
    main()
