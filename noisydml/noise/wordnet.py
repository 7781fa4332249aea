"""WordNet's nouns: read from its files, and searched for the names of classes."""

from __future__ import annotations

import gzip
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Entry = tuple[str, Sequence[str], Sequence[str]]  # a synset, its nouns, its hypernyms


class Nouns:
    """The noun synsets of a WordNet."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.lemmas: dict[str, list[str]] = {}  # the nouns of each synset, the usual one first
        self.hypernyms: dict[str, list[str]] = {}  # what each synset is a kind of
        self.senses: dict[str, list[str]] = {}  # the synsets of each noun, by its key
        for synset, names, above in entries:
            self.lemmas[synset] = [name.replace("_", " ") for name in names]
            self.hypernyms[synset] = list(above)
            for name in dict.fromkeys(map(key, names)):
                self.senses.setdefault(name, []).append(synset)

    def synsets(self, query: str) -> list[str]:
        """The synsets of a noun, or the one that goes by that id."""
        return [query] if query in self.lemmas else self.senses.get(key(query), [])

    def way(
        self, root: str, synset: str, been: frozenset[str] = frozenset()
    ) -> tuple[str, ...] | None:
        """The synsets from the root down to this one, or None if it is not below the root.

        A depth-first search takes at each synset the first hypernym from which the root can be
        reached without coming back to where the search has been.
        """
        if synset == root:
            return (root,)
        for hypernym in self.hypernyms.get(synset, ()):
            if hypernym not in been and (way := self.way(root, hypernym, been | {synset})):
                return (*way, synset)
        return None


class Match(NamedTuple):
    """What was found for the name of a class."""

    name: str
    query: str  # the noun or synset that was found: the name, its last words, or the fix
    kind: str  # "name", "last words", "fixed" or "unknown"
    synsets: tuple[str, ...]  # those below the root; the first one is taken


@dataclass(frozen=True)
class WordNetMatches:
    """The synset of every class name; see :func:`match_wordnet`.

    Args:
        root: the synset of the root.
        matches: of length C, for each class its ``name``, the ``query`` that found it, the
            ``kind``, ``"name"``, ``"last words"``, ``"fixed"`` or ``"unknown"``, and the
            ``synsets`` below the root, of which the first was taken.
    """

    root: str
    matches: tuple[Match, ...]
    _nouns: Nouns = field(repr=False)

    @property
    def unknown(self) -> list[str]:
        """The names for which no synset below the root was found."""
        return [match.name for match in self.matches if match.kind == "unknown"]

    @property
    def ambiguous(self) -> dict[str, list[str]]:
        """The names with several synsets below the root, and these; the first was taken."""
        return {m.name: list(m.synsets) for m in self.matches if len(m.synsets) > 1}

    def label(self, synset: str) -> str:
        """The usual noun of a synset."""
        return self._nouns.lemmas[synset][0]

    def path(self, match: Match) -> list[str]:
        """The synsets from the root to the one taken for a name."""
        return list(self._nouns.way(self.root, match.synsets[0]) or ())

    def report(self) -> str:
        """In words: how names were found, and which ones need a look."""
        kinds = [match.kind for match in self.matches]
        lines = [
            f"{len(kinds)} names below {self.label(self.root)} ({self.root}): "
            f"{kinds.count('name')} by name, {kinds.count('last words')} by their last words, "
            f"{kinds.count('fixed')} by hand, {kinds.count('unknown')} unknown, "
            f"{len(self.ambiguous)} ambiguous"
        ]
        for match in self.matches:
            taken = ", ".join(f"{self.label(s)} ({s})" for s in match.synsets)
            if match.kind == "unknown":
                lines.append(f'unknown: {match.name}; fix by fixes={{"{match.name}": "..."}}')
            elif len(match.synsets) > 1:
                lines.append(f"ambiguous: {match.name} as the first of {taken}")
            elif match.kind == "last words":
                lines.append(f"by last words: {match.name} as {taken}")
        return "\n".join(lines)

    def require_known(self) -> None:
        """Raise ValueError if names are unknown."""
        if self.unknown:
            raise ValueError(
                f"names must be nouns below {self.label(self.root)!r}, got {len(self.unknown)} "
                f"unknown: {', '.join(map(repr, self.unknown))}; give each a noun or synset that "
                f'WordNet has, as in fixes={{"{self.unknown[0]}": "{self.label(self.root)}"}}'
            )

    def warn_ambiguous(self) -> None:
        """Warn if names have several meanings below the root."""
        if self.ambiguous:
            several = "; ".join(f"{name!r}: {', '.join(s)}" for name, s in self.ambiguous.items())
            warnings.warn(
                f"{len(self.ambiguous)} names have several synsets below "
                f"{self.label(self.root)!r}, and the first was taken: {several}. "
                "Settle them by fixes={name: synset}.",
                stacklevel=3,
            )


def match_wordnet(
    names: Sequence[str], root: str, wordnet: Any, *, fixes: Mapping[str, str] | None = None
) -> WordNetMatches:
    """Find a noun of WordNet for every class name, below one root (ProcSim, appendix F).

    A name is looked up without regard to case, spaces, underscores, hyphens and possessive
    endings, so ``"Clark_Nutcracker"`` is "Clark's nutcracker". Only meanings below the root count,
    so a crane is a bird or a machine, as the root wants. A name that is not found is looked up by
    its last words: ``"Laysan_Albatross"`` is an albatross.

    Args:
        names: of length C, names of the classes.
        root: a noun or a synset, such as ``"n02084071"``. Of a noun with several synsets, the one
            below which most names are found.
        wordnet: a folder with the ``index.noun`` and ``data.noun`` of a WordNet 3; a JSON file,
            gzipped or not, or a dictionary, ``{synset: [[noun, ...], [hypernym, ...]]}``; or a
            reader of nltk such as ``nltk.corpus.wordnet``, which has lost the order of the
            hypernyms, so that the one of the lowest offset comes first.
        fixes: a noun or synset for names that are unknown, or found in the wrong place.

    Returns:
        What was found, unknown and ambiguous names included; see ``report()``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``root`` is not in WordNet, a fix is not below it or for none of ``names``,
            or the files are not those of a WordNet.
        FileNotFoundError: if there is no such folder or file.

    Example:
        >>> from noisydml.noise import match_wordnet
        >>> wordnet = {"n1": [["bird"], []], "n2": [["owl"], ["n1"]], "n3": [["barn-owl"], ["n2"]]}
        >>> found = match_wordnet(["Barn_Owl", "Snowy_Owl", "Pipit"], "bird", wordnet)
        >>> print(found.report())
        3 names below bird (n1): 1 by name, 1 by their last words, 0 by hand, 1 unknown, 0 ambiguous
        by last words: Snowy_Owl as owl (n2)
        unknown: Pipit; fix by fixes={"Pipit": "..."}
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError("names must be a sequence of strings")
    if not isinstance(root, str):
        raise TypeError(f"root must be a noun or a synset, got {type(root).__name__}")
    fixes = dict(fixes or {})
    for name in fixes:
        if name not in names:
            raise ValueError(f"fixes must be for names in names, got {name!r}")
    nouns = read_nouns(wordnet)
    roots = nouns.synsets(root)
    if not roots:
        raise ValueError(f"root must be a noun or synset of WordNet, got {root!r}")
    candidates = [
        WordNetMatches(r, tuple(_match(nouns, r, name, fixes.get(name)) for name in names), nouns)
        for r in roots
    ]
    best = min(candidates, key=lambda candidate: len(candidate.unknown))
    for name in best.unknown:
        if name in fixes:
            raise ValueError(
                f"fixes must be nouns or synsets below {best.label(best.root)!r}, got "
                f"{fixes[name]!r} for {name!r}"
            )
    return best


def read_nouns(wordnet: Any) -> Nouns:
    """The nouns of a folder, a JSON file, a dictionary or a reader of nltk."""
    if isinstance(wordnet, (str, os.PathLike)):
        path = Path(wordnet)
        if path.is_dir():
            return _read_folder(path)
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            return read_nouns(json.load(file))
    if isinstance(wordnet, Mapping):
        return Nouns((synset, entry[0], entry[1]) for synset, entry in wordnet.items())
    if not hasattr(wordnet, "all_synsets"):
        raise TypeError(
            "wordnet must be a folder, a JSON file, a dictionary or a reader of nltk, got "
            f"{type(wordnet).__name__}"
        )
    # nltk keeps hypernyms in sets: their order changes between processes.
    return Nouns(
        (
            _id(s.offset()),
            s.lemma_names(),
            sorted(_id(x.offset()) for x in s.hypernyms() + s.instance_hypernyms()),
        )
        for s in wordnet.all_synsets("n")
    )


def key(name: str) -> str:
    """What is the same for all spellings of a noun."""
    return re.sub(r"['’]s\b|[\W_]+", "", name.lower().replace("_", " "))


def _match(nouns: Nouns, root: str, name: str, fix: str | None) -> Match:
    words = re.split(r"[\s_]+", name.strip())
    queries = [("last words" if i else "name", " ".join(words[i:])) for i in range(len(words))]
    for kind, query in queries if fix is None else [("fixed", fix)]:
        if synsets := tuple(s for s in nouns.synsets(query) if nouns.way(root, s)):
            return Match(name, query, kind, synsets)
    return Match(name, name, "unknown", ())


def _read_folder(folder: Path) -> Nouns:
    """WordNet's own files, as the manual page wndb(5WN) describes them."""
    nouns = Nouns(_entries(folder / "data.noun"))
    if not nouns.lemmas:
        raise ValueError(f"wordnet must be a folder of WordNet 3, got {folder} without nouns")
    # data.noun is in the order of offsets, index.noun has the most frequent sense first.
    by_frequency: dict[str, dict[str, None]] = {}
    for fields in _lines(folder / "index.noun"):
        found = map(_id, fields[-int(fields[2]) :])
        by_frequency.setdefault(key(fields[0]), {}).update(dict.fromkeys(found))
    nouns.senses.update((noun, list(found)) for noun, found in by_frequency.items())
    return nouns


def _entries(path: Path) -> Iterator[Entry]:
    for fields in _lines(path):
        end = 4 + 2 * int(fields[3], 16)  # of the nouns, each with a number
        pointers = zip(fields[end + 1 :: 4], fields[end + 2 :: 4], strict=True)
        above = [_id(offset) for symbol, offset in pointers if symbol in ("@", "@i")]
        yield _id(fields[0]), fields[4:end:2], above


def _lines(path: Path) -> Iterator[list[str]]:
    """The fields of each line before the gloss, without those of the licence."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.startswith(" "):
                yield line.split(" | ")[0].split()


def _id(offset: int | str) -> str:
    return f"n{int(offset):08d}"
