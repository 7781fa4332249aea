"""From class names to language embeddings, for LanguageGuidance; needs the extra ``language``.

The models come from sentence-transformers, open_clip or transformers, the user's choice. They are
imported when they are used, and not loaded at all where the embeddings are cached.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from noisydml.functional.checks import require_count, require_floating, require_integer
from noisydml.functional.extras import optional
from noisydml.functional.files import replacing

Encode = Callable[[list[str]], Tensor]

_CHUNK = 256  # texts encoded at once


@dataclass(frozen=True)
class TextEncoder:
    """A model that embeds texts, loaded when it is first needed.

    Args:
        name: what tells it from other models; part of the key under which embeddings are cached.
        load: returns a function from a list of n texts to their (n, E) embeddings.

    Example:
        >>> import torch
        >>> from noisydml.language import TextEncoder
        >>> lengths = TextEncoder("lengths", lambda: lambda texts: torch.tensor([[len(texts[0])]]))
        >>> lengths.load()(["robin"])
        tensor([[5]])
    """

    name: str
    load: Callable[[], Encode]


def embed_names(
    names: Sequence[str] | Sequence[Sequence[str]],
    encoder: TextEncoder,
    *,
    prompt: str = "A photo of a {}",
    cache: str | os.PathLike[str] | None = None,
) -> Tensor:
    """Language embeddings of names, each put into a prompt.

    Args:
        names: N names, or N sequences of k names each (the pseudo-classes of a sample or class).
        encoder: the model.
        prompt: text with ``{}`` for the name; ProcSim's is the default.
        cache: folder in which embeddings are kept, one file for each set of prompts and model;
            None keeps nothing. A model changed under an unchanged name is not noticed.

    Returns:
        (N, E) or (N, k, E) float32, on the CPU, not normalised. Equal names are encoded once.

    Raises:
        TypeError, ValueError: if ``names`` are not strings, there are none, or their numbers
            differ; if ``prompt`` has no ``{}``.
        ImportError, OSError: if the encoder's package is not installed, or its weights cannot be
            had.

    Example:
        >>> import torch
        >>> from noisydml.language import TextEncoder, embed_names
        >>> def encode(texts):
        ...     return torch.tensor([[float(len(text))] for text in texts])
        >>> encoder = TextEncoder("lengths", lambda: encode)
        >>> embed_names([["robin", "crow"], ["crow", "jay"]], encoder).squeeze(2)
        tensor([[18., 17.],
                [17., 16.]])
    """
    flat, shape = _flattened(names)
    if not isinstance(prompt, str) or "{}" not in prompt:
        raise ValueError(f"prompt must be a text with {{}} for the name, got {prompt!r}")
    position = {name: i for i, name in enumerate(dict.fromkeys(flat))}
    texts = [prompt.replace("{}", name) for name in position]
    if not isinstance(encoder, TextEncoder):
        raise TypeError(f"encoder must be a TextEncoder, got {type(encoder).__name__}")
    embedded = _embed(texts, encoder) if cache is None else _cached(texts, encoder, Path(cache))
    rows = torch.tensor([position[name] for name in flat])
    return embedded.index_select(0, rows).reshape(*shape, -1)


def top_classes(
    logits: Tensor, k: int = 5, labels: Tensor | None = None, num_classes: int | None = None
) -> Tensor:
    """The k likeliest classes of a classifier: pseudo-classes of every sample, or of every class.

    With the (C, E) embeddings of all names of the classifier (ImageNet's, in the papers), the
    table of :class:`~noisydml.LanguageGuidance` is ``embedded[top_classes(logits)]``.

    Args:
        logits: (N, C) floating point, the classifier's output for the samples of the data set.
        k: how many, from 1 to C; 5 as published.
        labels: (N,) integers, not negative; with them the classes of the mean logits of each
            label, as published. A label without samples gets those of logits 0.
        num_classes: number of labels; default: the largest label plus 1.

    Returns:
        (N, k) integers, or (num_classes, k) with ``labels``; the likeliest first.

    Raises:
        TypeError: if logits are not floating point, labels no integers, or a number none.
        ValueError: if shapes do not fit, a logit is NaN, ``k`` is not from 1 to C, or a label is
            not below ``num_classes``.

    Example:
        >>> import torch
        >>> from noisydml.language import top_classes
        >>> logits = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.0, 0.7]])
        >>> top_classes(logits, k=2)
        tensor([[1, 2],
                [0, 2]])
        >>> top_classes(logits, k=2, labels=torch.tensor([0, 0]))
        tensor([[2, 0]])
    """
    require_floating("logits", logits, ndim=2)
    if logits.isnan().any():
        raise ValueError("logits must be numbers, got NaN")
    require_count("k", k)
    if k > logits.shape[1]:
        raise ValueError(f"k must be from 1 to {logits.shape[1]}, the classes, got {k}")
    if num_classes is not None:
        require_count("num_classes", num_classes)
    if labels is not None:
        require_integer("labels", labels, len(logits), "row of logits")
        least = int(labels.max()) + 1 if len(labels) else 0
        size = least if num_classes is None else num_classes
        if size < least or (len(labels) and int(labels.min()) < 0):
            raise ValueError(f"labels must be in [0, {size})")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # sums of many
        sums = logits.new_zeros(size, logits.shape[1]).index_add(0, labels.long(), logits)
        logits = sums / torch.bincount(labels.long(), minlength=size).clamp(min=1).unsqueeze(1)
    return logits.topk(k, dim=1).indices


def sentence_transformers_encoder(model: str, *, device: str = "cpu") -> TextEncoder:
    """A model of sentence-transformers.

    Args:
        model: its name on the Hugging Face hub, or a folder that holds it.
        device: where it runs.

    Example:
        >>> from noisydml.language import sentence_transformers_encoder
        >>> sentence_transformers_encoder("all-MiniLM-L6-v2").name
        'sentence-transformers all-MiniLM-L6-v2'
    """

    def load() -> Encode:
        with _package("sentence_transformers", "sentence-transformers", model) as package:
            loaded = package.SentenceTransformer(model, device=device)
        return lambda texts: loaded.encode(texts, convert_to_tensor=True, show_progress_bar=False)

    return TextEncoder(f"sentence-transformers {model}", load)


def open_clip_encoder(model: str, pretrained: str, *, device: str = "cpu") -> TextEncoder:
    """The language part of a CLIP model of open_clip; ProcSim's is ViT-B-32 with "openai".

    Args:
        model: name of the architecture, such as ``"ViT-B-32"``.
        pretrained: name of the weights, such as ``"openai"``, or a file that holds them.
        device: where it runs.

    Raises:
        ValueError: if ``pretrained`` is empty.

    Example:
        >>> from noisydml.language import open_clip_encoder
        >>> open_clip_encoder("ViT-B-32", "openai").name
        'open_clip ViT-B-32 openai'
    """
    if not pretrained:
        raise ValueError("pretrained must name weights; without them the model is random")

    def load() -> Encode:
        with _package("open_clip", "open_clip_torch", f"{model} {pretrained}") as package:
            loaded = package.create_model(model, pretrained=pretrained, device=device)
        loaded.eval()
        tokenize = package.get_tokenizer(model)
        return lambda texts: loaded.encode_text(tokenize(texts).to(device))

    return TextEncoder(f"open_clip {model} {pretrained}", load)


def transformers_encoder(
    model: str, *, pooling: Literal["pooler", "mean"] = "pooler", device: str = "cpu"
) -> TextEncoder:
    """A language model of transformers, such as ProcSim's ``"bert-base-uncased"``.

    Args:
        model: its name on the Hugging Face hub, or a folder that holds it.
        pooling: ``"pooler"``, the model's own output for the text (published), or ``"mean"`` of
            the last hidden states of its tokens.
        device: where it runs.

    Raises:
        ValueError: if ``pooling`` is neither; when texts are encoded, if the model has no pooler.

    Example:
        >>> from noisydml.language import transformers_encoder
        >>> transformers_encoder("bert-base-uncased").name
        'transformers bert-base-uncased pooler'
    """
    if pooling not in ("pooler", "mean"):
        raise ValueError(f"pooling must be 'pooler' or 'mean', got {pooling!r}")

    def load() -> Encode:
        with _package("transformers", "transformers", model) as package:
            tokenize = package.AutoTokenizer.from_pretrained(model)
            loaded = package.AutoModel.from_pretrained(model)
        loaded.to(device).eval()

        def encode(texts: list[str]) -> Tensor:
            tokens = tokenize(texts, return_tensors="pt", padding=True, truncation=True).to(device)
            output = loaded(**tokens)
            pooled: Tensor | None = getattr(output, "pooler_output", None)
            if pooling == "mean":
                mask = tokens["attention_mask"].unsqueeze(2)  # (n, tokens, 1)
                pooled = (output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
            if pooled is None:
                raise ValueError(f"{model} has no pooler; take pooling='mean'")
            return pooled

        return encode

    return TextEncoder(f"transformers {model} {pooling}", load)


def _flattened(names: Sequence[Any]) -> tuple[list[str], tuple[int, ...]]:
    """All names in a row, and the shape that they had."""
    if isinstance(names, str) or len(names) == 0:
        raise ValueError(f"names must be a sequence of one name or more, got {names!r}")
    if isinstance(names, Mapping | Set):
        raise TypeError(f"names must be a sequence, got {type(names).__name__}")
    names = list(names)  # a column of pandas is asked by its index
    single = isinstance(names[0], str)
    if not single and any(isinstance(row, str) for row in names):
        raise TypeError("names must be strings, or sequences of strings, not both")
    rows = [[name] for name in names] if single else [list(row) for row in names]
    counts = {len(row) for row in rows}
    if len(counts) > 1 or counts == {0}:
        raise ValueError(
            f"names must have as many pseudo-classes in every row, got {sorted(counts)}"
        )
    flat = [name for row in rows for name in row]
    for name in flat:
        if not isinstance(name, str):
            raise TypeError(f"names must be strings, got {type(name).__name__}")
    return flat, (len(rows),) if single else (len(rows), *counts)


def _embed(texts: list[str], encoder: TextEncoder) -> Tensor:
    encode = encoder.load()
    parts = []
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        with torch.no_grad():
            part = encode(chunk)
        is_tensor = isinstance(part, Tensor)
        if not is_tensor or part.ndim != 2 or len(part) != len(chunk):
            got = f"shape {tuple(part.shape)}" if is_tensor else type(part).__name__
            raise ValueError(f"{encoder.name} must return ({len(chunk)}, E), got {got}")
        parts.append(part.detach().float().cpu())
    return torch.cat(parts)


def _cached(texts: list[str], encoder: TextEncoder, folder: Path) -> Tensor:
    key = json.dumps([encoder.name, texts], ensure_ascii=False)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    with suppress(Exception):  # no file, or a broken one, which is made anew
        kept = torch.from_numpy(np.load(path, allow_pickle=False))
        if kept.ndim == 2 and len(kept) == len(texts) and kept.isfinite().all():
            return kept.float()
    embedded = _embed(texts, encoder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        np.save(file, embedded.numpy(), allow_pickle=False)
    return embedded


@contextmanager
def _package(module: str, package: str, weights: str) -> Iterator[Any]:
    """An optional package, with which a model's weights are loaded inside."""
    imported = optional(module, f"the encoder of {weights}", package=package, extra="language")
    try:
        yield imported
    except Exception as error:  # each package and hub has errors of its own
        raise OSError(
            f"the weights of {weights} cannot be had ({type(error).__name__}: {error}). Without "
            "access to the hub, give the path of a copy on this machine"
        ) from error
