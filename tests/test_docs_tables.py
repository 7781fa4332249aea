"""The documentation's tables say what the code does: losses, refusals, public names, figures."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_metric_learning
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import Tensor

import noisydml
from noisydml import GatheredLoss, GroundTruthFilter, LossWrapper, language, per_sample_loss

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def tables(page: str, first_column: str) -> list[list[str]]:
    """The rows of all tables of a page whose first column has that title, headings left out."""
    rows: list[list[str]] = []
    inside = False
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == first_column:
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            rows.append(cells)
    assert rows, f"{page} has no table with a column {first_column}"
    return rows


def code(cell: str) -> str:
    """What stands between the backticks."""
    found = re.fullmatch(r"`(.*)`", cell)
    assert found, f"expected code, got {cell}"
    return found[1]


# The losses of PML -----------------------------------------------------------------------------

CLASSES, WIDTH, SIZE = 4, 8, 16


class Row(NamedTuple):
    """A row of the table of losses."""

    loss: str
    terms: str
    weighted: str
    filtered: str
    ref: str
    notes: str

    @classmethod
    def parse(cls, cells: list[str]) -> Row:
        return cls(code(cells[0]), *cells[1:])


LOSSES = {row[0]: row for row in map(Row.parse, tables("per_sample_loss.md", "Loss"))}
INSTALLED = {name for name, _ in inspect.getmembers(pml_losses, inspect.isclass)}
TERMS = {
    "samples": {"element"},
    "proxies": {"element"},
    "positive pairs": {"pos_pair"},
    "pairs": {"pos_pair", "neg_pair"},
    "triplets": {"triplet"},
    "one number": {"already_reduced"},
}


def build(name: str) -> Any:
    """A loss of that class; raises TypeError for one that this function does not know how to."""
    torch.manual_seed(0)
    kind = getattr(pml_losses, name)
    special: dict[str, dict[str, Any]] = {
        "CrossBatchMemory": {"loss": pml_losses.ContrastiveLoss(), "embedding_size": WIDTH},
        "GenericPairLoss": {"mat_based_loss": True},
        "ManifoldLoss": {"l": WIDTH, "K": CLASSES},
        "MultipleLosses": {
            "losses": [pml_losses.ContrastiveLoss(), pml_losses.TripletMarginLoss()],
            "weights": [1.0, 0.5],
        },
        "P2SGradLoss": {"descriptors_dim": WIDTH, "num_classes": CLASSES},
        "RankedListLoss": {"margin": 0.4, "Tn": 1.0},
        "SelfSupervisedLoss": {"loss": pml_losses.ContrastiveLoss()},
    }
    if name in special:
        return kind(**special[name])
    try:
        return kind(num_classes=CLASSES, embedding_size=WIDTH)
    except TypeError:
        return kind()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(SIZE, WIDTH, generator=generator).requires_grad_()
    return embeddings, torch.arange(CLASSES).repeat_interleave(SIZE // CLASSES)


def value(loss: Any, *arguments: Any, **keywords: Any) -> Tensor:
    """The loss, with the same random choices in every call."""
    torch.manual_seed(2)
    result: Tensor = loss(*arguments, **keywords)
    return result.mean()


every_loss = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[] if row.loss in INSTALLED else pytest.mark.skip("not in PML"))
        for row in LOSSES.values()
        if not row.notes.endswith("not a loss")
    ],
    ids=lambda row: row.loss,
)
# torch about HistogramLoss, PML 2.9
quiet = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


def test_every_class_of_pml_is_listed_once() -> None:
    names = [row[0] for row in tables("per_sample_loss.md", "Loss")]
    assert len(set(names)) == len(names)
    assert not INSTALLED - set(LOSSES), "not in the table of docs/per_sample_loss.md"
    if pytorch_metric_learning.__version__.startswith("2.9"):
        assert not set(LOSSES) - INSTALLED, "in the table, not in PML 2.9"


@every_loss
@quiet
def test_weighted(row: Row) -> None:
    embeddings, labels = batch()
    if row.weighted == "no":
        with pytest.raises(TypeError, match=re.escape(code(row.notes))):
            per_sample_loss(build(row.loss), embeddings, labels)
        return
    assert row.weighted == "yes"
    per_sample = value(lambda: per_sample_loss(build(row.loss), embeddings, labels))
    torch.testing.assert_close(
        per_sample, value(build(row.loss), embeddings, labels), rtol=1e-6, atol=1e-6
    )

    weight = torch.linspace(0, 1, SIZE)
    torch.manual_seed(2)
    shares = per_sample_loss(build(row.loss), embeddings, labels)
    loss = value(GatheredLoss(build(row.loss)), embeddings, labels, sample_weight=weight)
    torch.testing.assert_close(loss, (weight * shares).mean(), rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(loss, embeddings)[0].isfinite().all()


@every_loss
@quiet
def test_filtered(row: Row) -> None:
    embeddings, labels = batch()
    ids = torch.arange(SIZE)
    if row.filtered == "no":
        with pytest.raises(TypeError, match=re.escape(code(row.notes))):
            GroundTruthFilter(build(row.loss), ids < 3)
        return
    assert row.filtered == "yes"
    is_noisy = ids < 3  # three rows of the first class
    loss = value(GroundTruthFilter(build(row.loss), is_noisy), embeddings, labels, sample_ids=ids)
    expected = value(build(row.loss), embeddings[~is_noisy], labels[~is_noisy])
    assert torch.equal(loss, expected)
    loss.backward()
    assert embeddings.grad is not None
    assert not embeddings.grad[is_noisy].any()


@every_loss
@quiet
def test_ref_emb(row: Row) -> None:
    embeddings, labels = batch()
    reference = {"ref_emb": embeddings.detach()[1:12].flip(1), "ref_labels": labels[1:12]}
    if row.ref == "no":
        with pytest.raises((TypeError, ValueError)):
            build(row.loss)(embeddings, labels, **reference)
        return
    assert row.ref == "yes"
    expected = value(build(row.loss), embeddings, labels, **reference)
    if row.weighted == "yes":
        shares = value(lambda: per_sample_loss(build(row.loss), embeddings, labels, **reference))
        torch.testing.assert_close(shares, expected, rtol=1e-6, atol=1e-6)


@every_loss
@quiet
def test_terms(row: Row) -> None:
    if not row.terms or row.terms.startswith("those of"):
        return
    loss, seen = build(row.loss), []
    loss.reducer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    embeddings, labels = batch()
    loss(embeddings, labels)
    kinds = {
        entry["reduction_type"]
        for part, entry in seen[-1].items()
        if isinstance(entry["losses"], Tensor) and not part.endswith("_reg_loss")
    }
    assert kinds == TERMS[row.terms]
    if row.terms == "proxies":
        assert all(len(entry["indices"]) == CLASSES for entry in seen[-1].values())


@pytest.mark.parametrize(
    "name", [row.loss for row in LOSSES.values() if row.notes.endswith("not a loss")]
)
def test_bases_are_no_losses(name: str) -> None:
    embeddings, labels = batch()
    with pytest.raises((TypeError, NotImplementedError)):
        per_sample_loss(build(name), embeddings, labels)


# The refusals ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The names that the examples of the protocol page define."""
    text = (DOCS / "protocol.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, namespace)
    return namespace


def snapshot(wrapper: LossWrapper) -> dict[str, Any]:
    state = wrapper.state_dict()
    return {name: x.clone() if isinstance(x, Tensor) else x for name, x in state.items()}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [pytest.param(*map(code, row), id=code(row[0])) for row in tables("protocol.md", "Call")],
)
def test_refusals(objects: dict[str, Any], call: str, error: str, message: str) -> None:
    wrappers = [x for x in objects.values() if isinstance(x, LossWrapper)]
    before = [(snapshot(wrapper), wrapper.decision) for wrapper in wrappers]
    with pytest.raises((TypeError, ValueError)) as refusal:
        eval(call, dict(objects))
    assert refusal.type.__name__ == error
    if message.endswith("…"):
        assert str(refusal.value).startswith(message.removesuffix("…"))
    else:
        assert str(refusal.value) == message

    for wrapper, (state, decision) in zip(wrappers, before, strict=True):
        torch.testing.assert_close(snapshot(wrapper), state, rtol=0, atol=0)
        assert wrapper.decision is decision


# The public names ------------------------------------------------------------------------------


def test_api_page_has_every_public_name() -> None:
    listed = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    names = {path.rsplit(".", 1)[1] for path in listed}
    public = {*noisydml.__all__, *noisydml.functional.__all__, *noisydml.noise.__all__}
    assert not public - names - {"__version__", "distributed", "functional", "noise", "plot"}
    assert {path.split(".")[1] for path in listed} >= {"functional", "distributed", "noise"}


# The import rule -------------------------------------------------------------------------------


def test_imports_point_down() -> None:
    """The rooms of docs/design.md, the lowest last: each uses its own and those below it."""
    floors = [re.findall(r"`(\w+)`", row[0]) for row in tables("design.md", "Room")]
    height = {room: -depth for depth, rooms in enumerate(floors) for room in rooms}
    package = Path(noisydml.__file__).parent
    assert height.keys() == {
        p.stem for p in package.iterdir() if p.suffix == ".py" or p.is_dir()
    } - {"__pycache__", "py"}
    for path in package.rglob("*.py"):
        room = path.relative_to(package).with_suffix("").parts[0]
        for module in imports(path):
            other = [*module.split("."), "__init__"][1]
            assert other == room or height[other] < height[room], f"{path} imports {module}"


COUNTS = {"Six": 6, "Eight": 8}


def test_what_the_pages_of_the_project_name_exists() -> None:
    """Files, names and numbers in docs/design.md and docs/contributing.md."""
    package = Path(noisydml.__file__).parent
    design, contributing = (
        (DOCS / f"{page}.md").read_text() for page in ("design", "contributing")
    )
    for name in re.findall(r"`([\w<>./-]+)`", design + contributing):
        if re.search(r"\.(py|md|yml|html|js|css)$|/$|^\.ci/", name):
            found = [*package.glob(name), *package.glob(f"*/{name}"), *DOCS.glob(f"*/{name}")]
            assert found or [*ROOT.glob(name.replace("<method>", "*"))], name
    sources = [*package.rglob("*.py"), ROOT / "tests" / "contract" / "cases.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    for name in re.findall(r"`([A-Z]\w+|[a-z]\w*_\w+)[.`]", design + contributing):
        assert re.search(rf"\b{name}\b", code) or name == "CHANGELOG", name
    methods = [code_of(row[0]) for row in tables("protocol.md", "Method")]
    said = re.search(r"(\w+) methods make a wrapper", design)
    assert said
    assert len(methods) == COUNTS[said[1]]
    assert all(hasattr(LossWrapper, method) for method in methods)
    places = re.search(r"(\w+) places, in this order:\n\n(.*?)\n\n[A-Z]", contributing, re.DOTALL)
    assert places
    assert len(re.findall(r"^\d\. ", places[2], re.MULTILINE)) == COUNTS[places[1]]
    rooms = re.search(r"(\w+) rooms;", design)
    assert rooms
    assert len(tables("design.md", "Room")) == COUNTS[rooms[1]]
    version = re.search(r"KaTeX\]\(\S+\) ([\d.]+) ", contributing)
    assert version
    assert f'version:"{version[1]}"' in (DOCS / "katex" / "katex.min.js").read_text()


def code_of(cell: str) -> str:
    """The name in a cell that shows its call."""
    return code(cell).partition("(")[0]


def test_extras_are_installed_from_a_clone() -> None:
    """The package is on no index."""
    package = Path(noisydml.__file__).parent
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md"), *package.rglob("*.py")]
    for page in pages:
        named = re.search(r"noisydml\[[a-z]+\]", page.read_text(encoding="utf-8"))
        assert named is None, f"{page}: {named}"


def imports(path: Path) -> list[str]:
    """The modules of the package that a file imports."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "noisydml":
            found += [f"noisydml.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return [name for name in found if name.split(".")[0] == "noisydml"]


# The papers' options ---------------------------------------------------------------------------


OPTIONS = [
    row
    for column in ("The paper", "The code", "PLG's code")
    for row in tables("coming_from.md", column)
]


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: row[0])
def test_options_of_the_papers_exist_here(row: list[str]) -> None:
    """Each call in the second column fits the signature of what it names."""
    theirs, ours = row[:2]
    if ours == "-":
        return
    found = re.findall(r"`([^`]+)`", ours)
    assert found, f"{theirs}: no code in {ours!r}"
    for source in found:
        expression = ast.parse(source, mode="eval").body
        if not isinstance(expression, ast.Call):
            assert source.removeprefix("decision.") in noisydml.Decision.__dataclass_fields__
            continue
        path = ast.unparse(expression.func)
        target = named(path)
        positional = [None] * len(expression.args)
        if inspect.isfunction(target) and inspect.isclass(named(path.rpartition(".")[0])):
            positional.insert(0, None)  # self of a method
        keywords = {keyword.arg: None for keyword in expression.keywords if keyword.arg}
        inspect.signature(target).bind_partial(*positional, **keywords)
        for name in keywords:
            parameters = inspect.signature(target).parameters
            assert name in parameters or pml_takes(target, name), f"{source}: no {name}"


def named(path: str) -> Any:
    """What a dotted name stands for: in noisydml, or in PML for losses and miners."""
    first, *rest = path.split(".")
    homes = {"losses": pml_losses, "miners": pml_miners, "language": language}
    found = homes[first] if first in homes else getattr(noisydml, first, None)
    for name in rest:
        found = getattr(found, name)
    return found


def pml_takes(target: Any, name: str) -> bool:
    """Whether a class of PML hands that keyword to a class that it derives from."""
    return inspect.isclass(target) and any(
        name in inspect.signature(base).parameters for base in inspect.getmro(target)
    )


# What robust gains -----------------------------------------------------------------------------


README = DOCS.parent / "README.md"
RESULTS = DOCS.parent / "examples" / "benchmarks" / "results"
ROBUST = ("plain", "robust", "robust (judged start)", "GroundTruthFilter")
TRAINED = ("plain", "PRISMFilter", "robust (judged start)", "GroundTruthFilter")
DATA = {
    "cars196": "Cars196, fine-tuned",
    "features_cars196": "Cars196, frozen",
    "features_cifar100": "CIFAR-100, frozen",
    "omniglot": "Omniglot, from scratch",
}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script of examples/benchmarks."""
    pytest.importorskip("tqdm")
    monkeypatch.syspath_prepend(str(DOCS.parent / "examples" / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def runs(benchmarks: Callable[[str], Any]) -> list[Any]:
    """Those with the multi-similarity loss on the data sets on which robust was run."""
    found = benchmarks("report").load(sorted(RESULTS.glob("*.jsonl")))
    return [r for r in found if r["recipe"] in DATA and r["loss"] == "multi-similarity"]


@pytest.mark.parametrize("page", [README, DOCS / "robust.md"], ids=lambda page: page.name)
def test_table_of_robust(page: Path, benchmarks: Callable[[str], Any], runs: list[Any]) -> None:
    """MAP@R wherever robust was run; in the README with half of the labels wrong."""
    report = benchmarks("report")
    of = {recipe: TRAINED if recipe in report.FROM_SCRATCH else ROBUST for recipe in DATA}
    own = [r for r in runs if r["method"] in of[r["recipe"]][1:3]]
    own = [r for r in own if page != README or r["rate"] == 0.5]
    own.sort(key=lambda r: (list(DATA).index(r["recipe"]), report.order("noise", r)))
    rows = [
        "| trained on | wrong labels | plain loss | `robust` | judged start | ceiling | undone |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe, noise in dict.fromkeys((r["recipe"], report.field(r, "noise")) for r in own):
        same = report.selected(runs, {"recipe": recipe, "noise": noise})
        methods = of[recipe]
        cells = [report.spread([r["map_at_r"] for r in same if r["method"] == m]) for m in methods]
        best = [r for r in same if r["method"] == methods[1 if cells[2] == "-" else 2]]
        undone = report.recovered(runs, best)
        rows.append(f"| {' | '.join([DATA[recipe], noise, *cells, undone])} |")
    table = "\n".join(rows)
    assert f"\n\n{table}\n\n" in page.read_text(encoding="utf-8"), f"it must be\n{table}"


def test_number_of_the_first_page(benchmarks: Callable[[str], Any], runs: list[Any]) -> None:
    report = benchmarks("report")
    wanted = {"recipe": "features_cars196", "noise": "published 50%"}
    cell = report.selected(runs, {**wanted, "method": "robust (judged start)"})
    share, seeds = (
        report.recovered(runs, cell),
        {1: "one seed", 2: "two seeds", 3: "three seeds"}[len(cell)],
    )
    text = " ".join((DOCS / "index.md").read_text(encoding="utf-8").split())
    assert f"with half of the labels wrong, it undoes {share} of the damage ({seeds})" in text


@pytest.mark.parametrize("file", ["judge.jsonl", "judge_tables.jsonl", "judge_texts.jsonl"])
def test_what_judge_quality_prints_is_shown(file: str, benchmarks: Callable[[str], Any]) -> None:
    judge_quality = benchmarks("judge_quality")
    table = judge_quality.table(judge_quality.read(RESULTS / file))
    page = (DOCS / "judge.md").read_text(encoding="utf-8")
    assert f"\n\n{table}\n\n" in page, f"it must be\n{table}"


def test_what_digits_prints_is_shown(benchmarks: Callable[[str], Any]) -> None:
    """Every row of the script, whether it speaks for a method or not."""
    digits = benchmarks("digits")
    assert [row[:2] for row in tables("choose.md", "setting")] == [
        [setting, method[0]]
        for setting, loss, _ in digits.settings(short=False)
        for method in digits.methods(loss)
    ]


def test_what_selection_digits_prints_is_shown(benchmarks: Callable[[str], Any]) -> None:
    methods = benchmarks("selection_digits").methods(pml_losses.ContrastiveLoss)
    assert [row[:2] for row in tables("interactions.md", "loss")] == [
        [loss, method[0]]
        for loss in ("MultiSimilarityLoss", "ContrastiveLoss")
        for method in methods
    ]


def test_what_titan_digits_prints_is_shown(benchmarks: Callable[[str], Any]) -> None:
    shown = [row[:2] for row in tables("titan.md", "noise") if len(row) == 5]
    variants = benchmarks("titan_digits").VARIANTS
    digits = [row for row in shown if row[1] in variants]
    assert digits == [[n, v] for n in ("uniform 50%", "pair flip 50%") for v in variants]


def test_figures_of_the_prose_stand_in_a_table() -> None:
    """So that a sentence does not keep a mean and a spread that have been measured anew."""
    figure = re.compile(r"\d+\.\d ± \d+\.\d")
    lines = [line for page in DOCS.glob("*.md") for line in page.read_text("utf-8").splitlines()]
    prose = {each for line in lines if line[:1] != "|" for each in figure.findall(line)}
    assert len(prose) >= 10
    assert not prose - {each for line in lines if line[:1] == "|" for each in figure.findall(line)}


# The README ------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").partition("\n## Details\n")[0].split()) < 700


def test_links_of_the_readme() -> None:
    """To files that exist, and to headings in them; MkDocs checks the links of the pages."""
    targets = re.findall(r"\]\((?!https:)([^)#]+)#?([^)]*)\)", README.read_text(encoding="utf-8"))
    assert len(targets) > 30
    for file, heading in targets:
        text = (README.parent / file).read_text(encoding="utf-8") if heading else ""
        titles = [re.sub(r"[^\w\s-]", "", t) for t in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
        assert (README.parent / file).exists(), file
        assert heading in ["", *("-".join(title.lower().split()) for title in titles)], heading
