"""The ablation script: its noise, its tables, and that it goes on where it was stopped."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "benchmarks" / "procsim_ablation.py"


@pytest.fixture(scope="module")
def script() -> Any:
    pytest.importorskip("tqdm")
    spec = importlib.util.spec_from_file_location("procsim_ablation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_semantic_noise_stays_in_the_group(script: Any) -> None:
    groups = torch.arange(12) // 4
    truth = torch.arange(12).repeat(50)
    for kind, expected in [("semantic", 1.0), ("uniform", 3 / 11)]:
        noisy = script.corrupt(truth, groups, kind, 0.5, seed=3)
        assert noisy.is_noisy.sum() == 300
        same_group = groups[noisy.labels[noisy.is_noisy]] == groups[truth[noisy.is_noisy]]
        assert same_group.double().mean() == pytest.approx(expected, abs=0.08)


def test_classes_to_train_and_to_test_are_disjoint(script: Any) -> None:
    data = script.load("digits", None)
    assert set(data.truth.tolist()) == set(range(6))
    assert set(data.test_labels.tolist()) == {6, 7, 8, 9}
    assert data.groups.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_harmonic_mean_of_the_papers_rows(script: Any) -> None:
    procsim = [70.1, 72.2, 71.0, 67.9, 69.3, 70.4, 60.8]  # Table 1, the clean column included
    assert round(script.harmonic_mean(procsim), 1) == 68.6
    ms = [67.9, 64.8, 60.6, 49.0, 64.0, 60.7, 49.5]
    assert round(script.harmonic_mean(ms), 1) == 58.6


def test_a_run_is_made_once(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    output = tmp_path / "runs.jsonl"
    arguments = ["script", "--short", "--variants", "MS", "ProcSim (base)", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    table = capsys.readouterr().out
    lines = output.read_text().splitlines()
    assert len(lines) == 2 * len(script.NOISES)
    assert "| ProcSim (base) | " in table

    output.write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:30])  # killed in the last run
    script.main()
    assert capsys.readouterr().out == table
    assert len(script.read(output)) == len(lines)


def test_every_variant_makes_a_loss(script: Any) -> None:
    run = script.Run("digits", "", "none", 0.0, 0, 1, 1, 0.1, 1.0, "pixels", 16, 1e-3, 1e-2)
    table = torch.randn(20, 8)

    def guidance() -> Any:
        return script.LanguageGuidance(table, by="sample_ids")

    parts = script.Parts(run, 5, guidance, torch.zeros(20, dtype=torch.bool))
    for make in script.VARIANTS.values():
        loss_fn = make(parts)
        x, y = torch.randn(20, script.WIDTH, requires_grad=True), torch.arange(20) % 5
        takes_ids = isinstance(loss_fn, script.LossWrapper)
        loss = loss_fn(x, y, **({"sample_ids": torch.arange(20)} if takes_ids else {}))
        loss.backward()
        assert x.grad.abs().sum() > 0
