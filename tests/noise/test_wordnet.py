"""WordNet: its three file formats, and the search for class names."""

from __future__ import annotations

import gc
import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from noisydml.noise import ClassHierarchy, WordNetMatches, match_wordnet
from noisydml.noise.wordnet import key, read_nouns

# Offset: nouns, hypernyms, and sense numbers other than 1.
TINY: dict[int, tuple[list[str], list[int]]] = {
    100: (["entity"], []),
    200: (["bird"], [100]),
    300: (["passerine", "perching_bird"], [200]),
    350: (["game"], [100]),
    400: (["thrush"], [300, 200]),
    500: (["nightjar", "goatsucker"], [200]),
    510: (["chuck-will's-widow"], [500]),
    600: (["game_bird"], [350, 200]),
    610: (["quail"], [600]),
    700: (["machine"], [100]),
    710: (["crane"], [700]),
    720: (["crane"], [200]),
    730: (["robin", "American_robin"], [400]),
    740: (["robin", "Old_World_robin"], [300]),
    800: (["bird", "dame"], [100]),
    900: (["Polly"], [720]),  # an instance
}
MORE_FREQUENT = {"robin": [740, 730]}  # the order of index.noun
JSON = {
    f"n{offset:08d}": [[noun.replace("_", " ") for noun in nouns], [f"n{h:08d}" for h in above]]
    for offset, (nouns, above) in TINY.items()
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a WordNet dictionary, in the format of wndb(5WN)."""
    path = tmp_path / "dict"
    path.mkdir()
    licence = "  1 This is a licence.  \n"
    data, senses = licence, dict[str, list[int]]()
    offsets = {}
    # Real offsets are positions in the file, so they are found by trying.
    for _ in range(2):
        data = licence
        for old, (nouns, above) in TINY.items():
            offsets_now = {**offsets}
            offsets[old] = len(data)
            words = " ".join(f"{noun} 0" for noun in nouns)
            symbol = "@i" if nouns == ["Polly"] else "@"
            pointers = [f"{symbol} {offsets_now.get(h, 0):08d} n 0000" for h in above]
            pointers.append("~ 00000000 n 0000")
            data += (
                f"{len(data):08d} 05 n {len(nouns):02x} {words} {len(pointers):03d} "
                f"{' '.join(pointers)} | a gloss  \n"
            )
    for old, (nouns, _) in TINY.items():
        for noun in nouns:
            senses.setdefault(noun, []).append(old)
    senses.update(MORE_FREQUENT)
    index = licence
    for noun, found in sorted((noun.lower(), found) for noun, found in senses.items()):
        listed = " ".join(f"{offsets[old]:08d}" for old in found)
        index += f"{noun} n {len(found)} 2 @ ~ {len(found)} 0 {listed}  \n"
    (path / "data.noun").write_text(data)
    (path / "index.noun").write_text(index)
    return path


NAMES = ["Chuck_will_Widow", "Perching-bird", "Hermit_Thrush", "crane", "Quail"]


def check(found: WordNetMatches, ordered: bool = True) -> None:
    assert [match.kind for match in found.matches] == ["name", "name", "last words", "name", "name"]
    assert found.matches[2].query == "Thrush"
    assert not found.unknown
    assert not found.ambiguous
    chain = [[found.label(synset) for synset in found.path(match)] for match in found.matches]
    assert chain == [
        ["bird", "nightjar", "chuck-will's-widow"],
        ["bird", "passerine"],
        # Its first hypernym, not the shortest way.
        ["bird", "passerine", "thrush"] if ordered else ["bird", "thrush"],
        ["bird", "crane"],
        ["bird", "game bird", "quail"],  # not by way of a game, which is no bird
    ]


def test_dictionary() -> None:
    check(match_wordnet(NAMES, "bird", JSON))


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_json_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"nouns{suffix}"
    text = json.dumps(JSON)
    if suffix.endswith("gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    check(match_wordnet(NAMES, "bird", path))
    check(match_wordnet(NAMES, "n00000200", str(path)))


def test_folder(folder: Path) -> None:
    check(match_wordnet(NAMES, "bird", folder))
    nouns = read_nouns(folder)
    assert len(nouns.lemmas) == len(TINY)
    first = nouns.senses["robin"][0]
    assert nouns.lemmas[first] == ["robin", "Old World robin"]  # the most frequent sense
    (polly,) = nouns.senses["polly"]
    assert [nouns.lemmas[h] for h in nouns.hypernyms[polly]] == [["crane"]]


def test_reader_of_nltk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nltk")
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    # nltk reads no WordNet but below its data path, and there are files that it insists on.
    place = folder.parent / "nltk_data" / "corpora" / "wordnet"
    place.parent.mkdir(parents=True)
    folder = folder.rename(place)
    for part in ("adj", "adv", "verb"):
        (folder / f"data.{part}").write_text("")
        (folder / f"index.{part}").write_text("")
        (folder / f"{part}.exc").write_text("")
    for name in ("noun.exc", "cntlist.rev", "index.sense"):
        (folder / name).write_text("")
    (folder / "lexnames").write_text("".join(f"{i:02d}\tnoun.x{i}\t1\n" for i in range(45)))
    monkeypatch.setattr(nltk.data, "path", [str(place.parents[1])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about languages, and files that nltk leaves open
        reader = WordNetCorpusReader(str(folder), None)
        check(match_wordnet(NAMES, "bird", reader), ordered=False)  # nltk keeps no order
        del reader
        gc.collect()  # here, and not in whichever test comes next


def test_the_root_is_the_sense_that_covers_most() -> None:
    assert match_wordnet(["crane", "Polly"], "bird", JSON).root == "n00000200"
    assert match_wordnet(["crane"], "machine", JSON).matches[0].synsets == ("n00000710",)


def test_unknown_names_are_all_listed_with_the_way_to_fix_them() -> None:
    names = ["crane", "Gadwall", "Dodo"]
    found = match_wordnet(names, "bird", JSON)
    assert found.unknown == ["Gadwall", "Dodo"]
    assert 'unknown: Gadwall; fix by fixes={"Gadwall": "..."}' in found.report()
    with pytest.raises(
        ValueError,
        match=r"names must be nouns below 'bird', got 2 unknown: 'Gadwall', 'Dodo'; .* "
        r'fixes=\{"Gadwall": "bird"\}',
    ):
        ClassHierarchy.from_wordnet(names, "bird", JSON)
    tree = ClassHierarchy.from_wordnet(
        names, "bird", JSON, fixes={"Gadwall": "game bird", "Dodo": "n00000500"}
    )
    assert tree.path("Gadwall") == ("bird", "game bird", "Gadwall")
    assert tree.path("Dodo") == ("bird", "nightjar", "Dodo")


def test_ambiguous_names_are_all_listed_with_the_way_to_fix_them() -> None:
    names = ["Robin", "crane"]
    found = match_wordnet(names, "bird", JSON)
    assert found.ambiguous == {"Robin": ["n00000730", "n00000740"]}
    assert "ambiguous: Robin as the first of robin (n00000730), robin (n00000740)" in found.report()
    with pytest.warns(UserWarning, match="1 names have several synsets .* 'Robin': n00000730, n"):
        tree = ClassHierarchy.from_wordnet(names, "bird", JSON)
    assert tree.path("Robin") == ("bird", "passerine", "thrush", "robin", "Robin")
    fixed = ClassHierarchy.from_wordnet(names, "bird", JSON, fixes={"Robin": "Old World robin"})
    assert fixed.path("Robin") == ("bird", "passerine", "robin", "Robin")


def test_the_report_counts_every_kind() -> None:
    found = match_wordnet(
        ["crane", "Song_Thrush", "Robin", "Dodo", "Emu"], "bird", JSON, fixes={"Emu": "bird"}
    )
    assert found.report().splitlines() == [
        "5 names below bird (n00000200): 2 by name, 1 by their last words, 1 by hand, 1 unknown, "
        "1 ambiguous",
        "by last words: Song_Thrush as thrush (n00000400)",
        "ambiguous: Robin as the first of robin (n00000730), robin (n00000740)",
        'unknown: Dodo; fix by fixes={"Dodo": "..."}',
    ]


def test_a_class_may_be_kind_of_another() -> None:
    """Each class is a leaf of its own, so an inner synset is a class, too."""
    tree = ClassHierarchy.from_wordnet(["Thrush", "American_Robin", "Bird"], "bird", JSON)
    assert tree.render() == "\n".join(
        ["bird", "├── thrush", "│   ├── Thrush", "│   └── American_Robin", "└── Bird"]
    )


def test_cycles_end() -> None:
    """Some editions have them."""
    loop = {"r": [["bird"], []], "a": [["owl"], ["b", "r"]], "b": [["barn owl"], ["a"]]}
    found = match_wordnet(["owl", "barn owl"], "bird", loop)
    assert not found.unknown
    assert [found.path(match) for match in found.matches] == [["r", "a"], ["r", "a", "b"]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Black_footed_Albatross", "blackfootedalbatross"),
        ("black-footed albatross", "blackfootedalbatross"),
        ("Clark's nutcracker", "clarknutcracker"),
        ("chuck-will's-widow", "chuckwillwidow"),
        ("S.U.V.", "suv"),
        ("Émeu 2", "émeu2"),
    ],
)
def test_key(name: str, expected: str) -> None:
    assert key(name) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"names": "crane"}, TypeError, "names must be a sequence of strings"),
        ({"names": [1]}, TypeError, "names must be a sequence of strings"),
        ({"root": 5}, TypeError, "root must be a noun or a synset, got int"),
        ({"root": "dragon"}, ValueError, "root must be a noun or synset of WordNet, got 'dragon'"),
        ({"wordnet": 5}, TypeError, "wordnet must be a folder, a JSON file, .* got int"),
        ({"wordnet": "/no/such/file"}, FileNotFoundError, "no/such/file"),
        ({"fixes": {"emu": "bird"}}, ValueError, "fixes must be for names in names, got 'emu'"),
        (
            {"fixes": {"crane": "machine"}},
            ValueError,
            "fixes must be nouns or synsets below 'bird', got 'machine' for 'crane'",
        ),
    ],
    ids=str,
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"names": ["crane"], "root": "bird", "wordnet": JSON}
    with pytest.raises(error, match=message):
        match_wordnet(**{**good, **arguments})


def test_a_folder_without_wordnet(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.noun"):
        match_wordnet(["crane"], "bird", tmp_path)
    (tmp_path / "data.noun").write_text("  1 licence\n")
    with pytest.raises(ValueError, match="wordnet must be a folder of WordNet 3"):
        match_wordnet(["crane"], "bird", tmp_path)


def test_debians_wordnet() -> None:
    """All of WordNet, where Debian's package has it."""
    if not Path("/usr/share/wordnet/data.noun").exists():
        pytest.skip("no /usr/share/wordnet; apt-get install wordnet-base")
    names = ["Laysan_Albatross", "Clark_Nutcracker", "Chuck_will_Widow", "Gadwall", "Mallard"]
    found = match_wordnet(names, "bird", "/usr/share/wordnet")
    assert found.root == "n01503061"
    assert [match.kind for match in found.matches] == [
        "last words",
        "name",
        "name",
        "unknown",
        "name",
    ]
    assert found.matches[4].synsets == ("n01847806",)
    assert [found.label(s) for s in found.path(found.matches[4])] == [
        "bird",
        "aquatic bird",
        "waterfowl",
        "anseriform bird",
        "duck",
        "mallard",
    ]
