"""All that knows pytorch-metric-learning (PML): the folder that its version 3 will rewrite."""

from noisydml.pml.call import call, sample_losses, split, split_pairs, supervised_contrastive

__all__ = ["call", "sample_losses", "split", "split_pairs", "supervised_contrastive"]
