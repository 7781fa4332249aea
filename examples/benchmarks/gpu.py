"""What holds, and what it costs, on a GPU: one command from a source tree, in eight minutes.

    python examples/benchmarks/gpu.py --output examples/benchmarks/results/gpu.json
    python examples/benchmarks/gpu_page.py

It needs torch with CUDA, pytorch-metric-learning and faiss-cpu, which may be wheels on PYTHONPATH;
noisydml is that of the source tree. Omniglot is looked for in the folder NOISYDML_DATA. The parts:

* contract: the tests of tests/contract that take a CUDA device (needs pytest);
* synchronisations: how often the host waits in a step of each wrapper;
* shares: of a training step of a ResNet-50 (bfloat16, channels last, 224 pixels), with and
  without each wrapper in turn;
* limits: PRISM, neighbours and TITAN beside the bare products that they cannot do without;
* judge: find_label_issues on features that are on the device;
* tables: the quickstart's and Omniglot's, trained on the device. In one call with all others they
  are cut off on an H200, which took five minutes; ``--parts tables`` has more than these.

Each part is a process of its own with a budget in seconds. What is measured is in the JSON file at
once; a part that has not finished by then is stopped, and the file says so. ``--short`` runs the
same lines on the CPU with tiny sizes.
"""

# ruff: noqa: E402 - the source tree comes first

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import fields, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
for folder in ("examples/benchmarks", "examples", ""):
    sys.path.insert(0, str(ROOT / folder))
os.environ.setdefault("TQDM_DISABLE", "1")
# Asked by way of CUDA whether there is a device, this process could not be forked any more.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import guidance_cost
import image_sets
import knn_cost
import numpy as np
import prism_cost
import quickstart
import step_share
import titan_cost
import torch
import train
from pytorch_metric_learning import losses
from step_share import Size
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import noisydml

Record = dict[str, Any]


class Scale(NamedTuple):
    """How much is measured."""

    sizes: list[Size]  # classes and samples; features and embeddings of the network
    batches: list[int]
    pixels: int
    repeats: int
    judged: list[int]  # samples
    fill: int  # rows at once that fill the memories
    epochs: int | None  # of the tables; None for what the tables have
    short: bool


FULL = Scale(
    [Size(98, 8_054, 2048, 512), Size(11_318, 59_551, 2048, 512)],
    [64, 128, 360], 224, 9, [60_000, 300_000, 1_000_000], 4096, None, short=False,
)  # fmt: skip
SHORT = Scale([Size(12, 240, 2048, 16)], [16], 32, 1, [600], 240, 1, short=True)


def everyone(loss: nn.Module, size: Size, head: nn.Module) -> dict[str, nn.Module]:
    """Those whose share is measured, and the others."""
    knn = noisydml.KNNDenoiser(losses.ContrastiveLoss(), memory_size=size.samples)
    relabeled = noisydml.KNNDenoiser(losses.ContrastiveLoss(), memory_size=size.samples)
    guidance = noisydml.LanguageGuidance(torch.randn(size.samples, 1, 64), by="sample_ids")
    return {
        **step_share.wrappers(loss, size, head),
        "`GroundTruthFilter`": noisydml.GroundTruthFilter(loss, torch.rand(size.samples) < 0.5),
        "`RegularizedLoss`": noisydml.RegularizedLoss(loss, guidance, 1),
        "`GatheredLoss`": noisydml.GatheredLoss(loss),
        "`SelectedInteractions(KNNDenoiser)`": noisydml.SelectedInteractions(knn),
        "`MemoryRelabeler(KNNDenoiser)`": noisydml.MemoryRelabeler(
            relabeled, size.width, memory_size=size.samples
        ),
    }


def data_set(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features around a center for each class, and labels of which half are drawn anew."""
    truth, other = torch.randint(size.classes, (2, size.samples), device=device)
    features = torch.randn(size.classes, size.features, device=device)[truth]
    features += torch.randn(features.shape, device=device)
    wrong = torch.rand(size.samples, device=device) < 0.5
    return features, torch.where(wrong, other, truth)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> Any:
    """A point in time: of the device's queue, so that what the host does meanwhile is free."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def interleaved(
    tasks: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, np.ndarray]:
    """Milliseconds of each task, one after the other in every repeat; some more are not counted."""
    untimed = min(repeats - 1, 2)
    marks = [
        (name, mark(device), task(), mark(device))
        for _ in range(untimed + repeats)
        for name, task in tasks.items()
    ]
    synchronize(device)
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for name, start, _, end in marks:
        on_cpu = isinstance(start, float)
        found[name].append(1e3 * (end - start) if on_cpu else start.elapsed_time(end))
    return {name: np.array(values[untimed:]) for name, values in found.items()}


def quartiles(values: np.ndarray) -> list[float]:
    return [round(float(x), 5) for x in np.quantile(values, (0.25, 0.5, 0.75))]


# The parts -------------------------------------------------------------------------------------


def contract(scale: Scale, device: torch.device, seconds: float) -> Iterator[Record]:
    """The tests, a process and a record for each file; it stops before the time is over."""
    if find_spec("pytest") is None:
        yield {"skipped": "pytest is not installed"}
        return
    until = time.monotonic() + 0.9 * seconds
    folder = ROOT / "tests" / "contract"
    slowest = {folder / "test_resume.py", folder / "test_devices.py"}  # these two first
    found = {f for f in folder.glob("test_*.py") if "device: str" in f.read_text()}
    files = [*sorted(slowest), *sorted(found - slowest)]
    files = [folder / "test_gradients.py"] if scale.short else files
    only = f"{device.type} and prism" if scale.short else device.type
    workers = max(1, min(len(files), (os.cpu_count() or 1) // 2))
    with ThreadPoolExecutor(workers) as pool, tempfile.TemporaryDirectory() as reports:
        tests = [pool.submit(tested, file, only, until, Path(reports)) for file in files]
        yield from (done.result() for done in as_completed(tests))


def tested(file: Path, only: str, until: float, reports: Path) -> Record:
    """What pytest says of the tests of a file whose names have some words, four at a time."""
    report = reports / f"{file.stem}.xml"
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-q"]
    command += ["-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    command += ["-k", only, str(file)]
    if find_spec("xdist"):
        command += ["-p", "xdist", "-n", "4"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=max(until - time.monotonic(), 1), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return {"cut": f"{file.name} after {error.timeout:.0f} s"}
    if done.returncode != 0:
        print(done.stdout, done.stderr, file=sys.stderr)
    if not report.exists():
        return {"failed": f"{file.name}: pytest ended with {done.returncode}"}
    cases = list(ElementTree.parse(report).iter("testcase"))
    kinds = [{child.tag for child in case} for case in cases]
    failed = [
        str(case.get("name"))
        for case, kind in zip(cases, kinds, strict=True)
        if kind & {"failure", "error"}
    ]
    skipped = sum("skipped" in kind for kind in kinds)
    passed = len(cases) - skipped - len(failed)
    return {"file": file.name, "passed": passed, "skipped": skipped, "failed": failed}


def synchronisations(scale: Scale, device: torch.device, _: float) -> Iterator[Record]:
    """Of a step: around a loss that never waits, around PML's, and of PML's alone."""
    value = torch.ones((), device=device)
    yield {
        "wrapper": "one `.item()`, to see that they are counted",
        "own": waits(value.item, device),
    }
    size = scale.sizes[0]
    features, labels = data_set(size, device)
    head = nn.Linear(size.features, size.width).to(device)
    embeddings = head(features).detach()
    ids = step_share.draw(labels, scale.batches[-1])
    for name in everyone(step_share.Free(), size, head):
        counts = {}
        for key, loss in (("own", step_share.Free()), ("step", losses.ContrastiveLoss())):
            wrapper = everyone(loss, size, head)[name].to(device)
            if key == "own" and not isinstance(innermost(wrapper), step_share.Free):
                continue
            inputs = features if name == step_share.MIXER else embeddings
            step_share.see_an_epoch(wrapper, inputs, labels, scale.fill)
            rows = inputs[ids].requires_grad_()
            step = called(wrapper, rows, labels[ids], ids)
            for _ in range(3):
                step()
            counts[key] = waits(step, device)
        plain = called(losses.ContrastiveLoss(), embeddings[ids].requires_grad_(), labels[ids])
        yield {"wrapper": name, **counts, "loss": waits(plain, device)}


def waits(step: Callable[[], object], device: torch.device) -> int:
    """How often CUDA warns that the host waits for it."""
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def innermost(wrapper: nn.Module) -> Any:
    while isinstance(wrapper, noisydml.LossWrapper):
        wrapper = wrapper.loss
    return wrapper


def called(loss: nn.Module, rows: Tensor, labels: Tensor, ids: Tensor | None = None) -> Any:
    """A call and its backward pass."""
    keywords = {} if ids is None else {"sample_ids": ids}
    return lambda: loss(rows, labels, **keywords).mean().backward()


def work_of(step: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """How many kernels a step launches, and the milliseconds that the device works on them."""
    if device.type != "cuda":
        return 0, 0.0
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        synchronize(device)
    kernels = [e for e in found.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    spent = sum(event.self_device_time_total for event in kernels) / 1e3
    return sum(event.count for event in kernels), spent


class Network(nn.Module):
    """A ResNet-50 whose features are those of the data set, and next to nothing of its own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        return features + 1e-3 * self.body(images)


class Step:
    """Forward, loss, backward and optimiser, in bfloat16; a rate of 0 leaves the network alone."""

    def __init__(self, network: nn.Module, head: nn.Module, loss: nn.Module) -> None:
        self.network, self.head, self.loss = network, head, loss
        parameters = nn.ModuleList([network, head, loss]).parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0)

    def __call__(self, images: Tensor, features: Tensor, labels: Tensor, ids: Tensor) -> None:
        keywords = {"sample_ids": ids} if isinstance(self.loss, noisydml.LossWrapper) else {}
        with torch.autocast(images.device.type, torch.bfloat16):
            embeddings = self.head(self.network(images, features))
            value = self.loss(embeddings, labels, **keywords)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()


def shares(scale: Scale, device: torch.device, _: float) -> Iterator[Record]:
    """Of whole steps: (with - without) / with; and the wrapper's own around a free loss.

    Of these also what the device works, which is less than the step takes: it waits for the host to
    launch the next kernel.
    """
    body = guidance_cost.resnet50(scale.sizes[0].width)[:-1]  # each size has a head of its own
    network = Network(body.to(device, memory_format=torch.channels_last))
    for size in scale.sizes:
        features, labels = data_set(size, device)
        head = nn.Linear(size.features, size.width).to(device)
        own = step_share.own_steps(size, head, features, labels, scale.fill)
        plain = Step(network, head, losses.MultiSimilarityLoss())
        whole = {}
        for name, wrapper in step_share.wrappers(losses.MultiSimilarityLoss(), size, head).items():
            inputs = own[name][0].inputs
            step_share.see_an_epoch(wrapper.to(device), inputs, labels, scale.fill)
            outside = nn.Identity() if name == step_share.MIXER else head
            whole[name] = Step(network, outside, wrapper)
        for batch in scale.batches:
            images = torch.randn(batch, 3, scale.pixels, scale.pixels, device=device)
            images = images.to(memory_format=torch.channels_last)
            ids = step_share.draw(labels, batch)
            rows = images, features[ids], labels[ids], ids
            for name, step in whole.items():
                alone, free = own[name]
                spent = interleaved(
                    {
                        "plain": lambda: plain(*rows),  # noqa: B023 - called at once
                        "whole": lambda: step(*rows),  # noqa: B023
                        "own": lambda: alone(ids),  # noqa: B023
                        "free": lambda: free(ids),  # noqa: B023
                    },
                    scale.repeats,
                    device,
                )
                more = (spent["whole"] - spent["plain"]) / spent["whole"]
                beside = (spent["own"] - spent["free"]) / spent["whole"]
                kernels, busy = work_of(lambda: alone(ids), device)  # noqa: B023
                others, idle = work_of(lambda: free(ids), device)  # noqa: B023
                busy = (busy - idle) / float(np.median(spent["whole"]))
                yield {
                    "classes": size.classes, "samples": size.samples, "batch": batch,
                    "wrapper": name, "rows": int(step.loss.decision.keep.sum()),
                    "step_ms": quartiles(spent["whole"]), "more": quartiles(more),
                    "own": quartiles(beside), "kernels": kernels - others, "busy": busy,
                }  # fmt: skip


def limits(scale: Scale, device: torch.device, _: float) -> Iterator[Record]:
    """Ratios to what cannot be left out, repeat by repeat."""
    for size in scale.sizes:
        width, batch = (size.width, 64) if not scale.short else (16, 8)
        shape = (size.classes, width, size.samples, batch)
        sets = {
            "PRISMFilter": (prism_cost.tasks(shape, device), ("given", "estimated"), "bare"),
            "KNNDenoiser": (
                knn_cost.tasks((size.samples, width, batch, size.classes), device),
                ("call",),
                "bare",
            ),
            "PrototypicalMixer": (
                titan_cost.tasks(
                    *titan_cost.prepared(size.classes, width, size.samples, batch, device)
                ),
                ("log-densities", "whole step and its gradient"),
                "bare product and its gradient",
            ),
        }
        for name, (tasks, parts, limit) in sets.items():
            wanted = {key: tasks[key] for key in (limit, *parts)}
            spent = interleaved(wanted, 3 * scale.repeats, device)
            for part in parts:
                yield {
                    "wrapper": name, "classes": size.classes, "samples": size.samples,
                    "width": width, "batch": batch, "part": part, "limit": limit,
                    "ratio": quartiles(spent[part] / spent[limit]),
                    "limit_ms": quartiles(spent[limit]),
                }  # fmt: skip


def judge(scale: Scale, device: torch.device, _: float) -> Iterator[Record]:
    """Ten samples a class, 128 wide, a fifth of the labels wrong."""
    for size in scale.judged:
        classes = max(size // 10, 2)
        truth, other = torch.randint(classes, (2, size), device=device)
        wrong = (torch.rand(size, device=device) < 0.2) & (truth != other)
        features = torch.randn(classes, 128, device=device)[truth]
        features += 0.5 * torch.randn(size, 128, device=device)
        synchronize(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        found = noisydml.find_label_issues(features, torch.where(wrong, other, truth))
        synchronize(device)
        seconds = time.perf_counter() - start
        right = wrong.cpu()[found.issues].float().sum().item()
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        yield {
            "samples": size, "classes": classes, "seconds": round(seconds, 2), "bytes": peak,
            "rate": round(found.noise_rate, 4), "wrong": round(wrong.float().mean().item(), 4),
            "precision": right / max(len(found.issues), 1),
            "recall": right / max(wrong.sum().item(), 1),
        }  # fmt: skip


def moved(data: Any, device: torch.device) -> Any:
    """A dataclass of tensors, on a device."""
    assert is_dataclass(data)
    values = {f.name: getattr(data, f.name) for f in fields(data)}
    return replace(data, **{n: v.to(device) for n, v in values.items() if isinstance(v, Tensor)})


SEEDS = (0, 1, 2)
TABLE = ("plain", "robust", "PRISMFilter", "KNNDenoiser (0.25)", "GroundTruthFilter")


def tables(scale: Scale, device: torch.device, _: float) -> Iterator[Record]:
    """The quickstart and Omniglot, half of the labels wrong at random; some runs at a time."""
    quick = quickstart.METHODS[: 2 if scale.short else None]
    runs = [("omniglot", method, seed) for seed in ([0] if scale.short else SEEDS)
            for method in TABLE]  # fmt: skip
    runs += [("quickstart", name, 0) for name, _, _ in quick]
    # This process cannot be forked any more, as it has asked CUDA for its name.
    context = multiprocessing.get_context("spawn")
    workers = 1 if scale.short else max(1, min(len(runs), (os.cpu_count() or 1) // 2))
    with ProcessPoolExecutor(workers, context) as pool:
        found = [pool.submit(trained, *run, scale.epochs, scale.short, str(device)) for run in runs]
        yield from (done.result() for done in as_completed(found))


def trained(
    table: str, method: str, seed: int, epochs: int | None, short: bool, device: str
) -> Record:
    """A row of a table."""
    torch.set_num_threads(1)
    names = ("p_at_1", "map_at_r")
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        if table == "quickstart":
            data = moved(quickstart.load_data(0.5, seed), torch.device(device))
            named = next(each for each in quickstart.METHODS if each[0] == method)
            found = quickstart.train(named, data, epochs or 20, seed=seed)
            scores = {name: getattr(found, name)[-1] for name in names}
            return {"table": table, "method": method, "seed": seed, **scores}
        recipe = train.RECIPES["omniglot"]
        path = Path(os.environ.get("NOISYDML_DATA", folder)) / recipe.file
        if short:
            options = argparse.Namespace()
            train.shorten(options, Path(folder))
            path = options.data
        if not path.exists():
            return {"table": table, "skipped": f"no {recipe.file} in NOISYDML_DATA"}
        images = image_sets.load(path)
        given = moved(image_sets.corrupt(images, "uniform", 0.5, seed), torch.device(device))
        run = train.Run(
            "omniglot", path.stem, "multi-similarity", method, "uniform", 0.5, seed,
            epochs=epochs or recipe.epochs, steps=2 if short else recipe.steps,
        )  # fmt: skip
        result = train.train(run, recipe, moved(images, torch.device(device)), given)
        scores = {name: result[name] for name in names}
        return {"table": table, "method": method, "seed": seed, **scores}


Part = Callable[[Scale, torch.device, float], Iterator[Record]]
PARTS: dict[str, tuple[Part, float]] = {
    "contract": (contract, 115),
    "synchronisations": (synchronisations, 10),
    "shares": (shares, 90),
    "limits": (limits, 8),
    "judge": (judge, 60),
    "tables": (tables, 175),
}
ALL = 455.0  # seconds; the last part takes what the others have left of them


# The processes ---------------------------------------------------------------------------------


def work(name: str, scale: Scale, device_name: str, seconds: float, sender: Any) -> None:
    """In a process of its own: an error or a hang of the device is that part's alone."""
    said = "finished"
    os.setsid()  # what it starts ends with it
    try:
        torch.manual_seed(0)
        device = torch.device(device_name)
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        sender.send(("device", where))
        with contextlib.redirect_stdout(io.StringIO()):
            for record in PARTS[name][0](scale, device, seconds):
                sender.send(("record", record))
    except Exception as error:  # whatever it is, the other parts go on
        traceback.print_exc()
        said = f"failed: {type(error).__name__}: {error}".splitlines()[0]
    sender.send(("end", said))


def supervise(
    name: str, scale: Scale, device: str, seconds: float, note: Callable[[Record], None]
) -> Record:
    """Run a part until its time is over; ``note`` is told of every record."""
    part: Record = {"budget_s": seconds, "status": f"cut after {seconds:.0f} s", "records": []}
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(name, scale, device, seconds, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    while receiver.poll(max(0.0, start + seconds - time.monotonic())):
        try:
            kind, what = receiver.recv()
        except EOFError:
            process.join()
            part["status"] = f"failed: its process ended with {process.exitcode}"
            break
        if kind == "end":
            part["status"] = what
            break
        if kind == "device":
            part["device"] = what
        else:
            part["records"].append(what)
            note(part)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    part["seconds"] = round(time.monotonic() - start, 1)
    note(part)
    return part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cuda, or cpu with --short")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--short", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    device = options.device or ("cpu" if options.short else "cuda")
    scale = SHORT if options.short else FULL
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result: Record = {"short": options.short, "torch": torch.__version__, "parts": {}}
    result["noisydml"] = noisydml.__version__

    def write(name: str, part: Record) -> None:
        result["parts"][name] = part
        beside = options.output.with_suffix(".part")
        beside.write_text(json.dumps(result, indent=1) + "\n")
        beside.replace(options.output)

    start = time.monotonic()
    for name in options.parts:
        seconds = PARTS[name][1]
        if name == options.parts[-1]:
            seconds = max(seconds, ALL - (time.monotonic() - start))
        part = supervise(name, scale, device, seconds, lambda part: write(name, part))  # noqa: B023
        said = f"{len(part['records'])} records in {part['seconds']} s, {part['status']}"
        print(f"{name}: {said}", flush=True)
    statuses = [part["status"] for part in result["parts"].values()]
    if any(status.startswith("failed") for status in statuses):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
