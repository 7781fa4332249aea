"""WordNet's nouns: read from its files, and searched for the names of classes."""

from __future__ import annotations

import gzip
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Nouns:
    """The noun synsets of a WordNet.

    Args:
        lemmas: the nouns of each synset, the usual one first.
        hypernyms: the synsets that each synset is a kind of.
        senses: the synsets of each noun, the most frequent first where the source says so; the
            keys are those of :func:`key`.
    """

    lemmas: dict[str, list[str]]
    hypernyms: dict[str, list[str]]
    senses: dict[str, list[str]]

    def parents_below(self, root: str) -> dict[str, str]:
        """The parent of every synset below ``root`` on the first way up that leads there.

        A depth-first search over hypernyms takes at each synset the first hypernym from which
        the root can be reached without coming back to where the search has been.
        """
        hyponyms: dict[str, list[str]] = {}
        for synset, above in self.hypernyms.items():
            for hypernym in above:
                hyponyms.setdefault(hypernym, []).append(synset)
        below, todo = {root: None}, [root]  # a dictionary for its order
        while todo:
            for hyponym in hyponyms.get(todo.pop(), ()):
                if hyponym not in below:
                    below[hyponym] = None
                    todo.append(hyponym)
        parents: dict[str, str] = {}

        def climb(synset: str, been: frozenset[str]) -> bool:
            if synset == root or synset in parents:
                return True
            been |= {synset}
            for hypernym in self.hypernyms[synset]:
                if hypernym in below and hypernym not in been and climb(hypernym, been):
                    parents[synset] = hypernym
                    return True
            return False

        for synset in below:
            climb(synset, frozenset())
        return parents


@dataclass(frozen=True)
class Match:
    """What was found for the name of a class.

    Args:
        name: the name.
        query: the noun or synset that was found: the name, its last words, or the fix.
        kind: ``"name"``, ``"last words"``, ``"fixed"`` or ``"unknown"``.
        synsets: the synsets found below the root; the first one is taken.
    """

    name: str
    query: str
    kind: str
    synsets: tuple[str, ...]


@dataclass(frozen=True)
class WordNetMatches:
    """The synset of every class name; see :func:`match_wordnet`.

    Args:
        root: the synset of the root.
        matches: (C,) for each name ``name``, ``query``, ``kind`` and ``synsets``, of which the
            first was taken.
    """

    root: str
    matches: tuple[Match, ...]
    _nouns: Nouns = field(repr=False)
    _parents: dict[str, str] = field(repr=False)

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
        path = [match.synsets[0]]
        while path[-1] != self.root:
            path.append(self._parents[path[-1]])
        return path[::-1]

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
        root: a noun or a synset. Of a noun with several synsets, the one below which most names
            are found.
        wordnet: where the nouns come from. A folder with ``index.noun`` and ``data.noun``, as
            every WordNet 3 has (``/usr/share/wordnet`` after ``apt install wordnet-base``); a
            JSON file, gzipped or not, or a dictionary, of
            ``{synset: [[noun, ...], [hypernym, ...]]}``; or a reader of nltk such as
            ``nltk.corpus.wordnet`` (``pip install noisydml[wordnet]``), which has lost the order of
            the hypernyms, so that the one of the lowest offset comes first. Synsets are called by
            part of speech and offset, ``"n02084071"``.
        fixes: a noun or synset for names that are unknown, or found in the wrong place.

    Returns:
        What was found, unknown and ambiguous names included; see ``report()``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``root`` is not in WordNet, a fix is not below it or for a name that is not
            in ``names``, or the files are not those of a WordNet.
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
    roots = _synsets(nouns, root)
    if not roots:
        raise ValueError(f"root must be a noun or synset of WordNet, got {root!r}")
    best: WordNetMatches | None = None
    for synset in roots:
        parents = nouns.parents_below(synset)
        below = parents.keys() | {synset}
        found = tuple(_match(nouns, below, name, fixes.get(name)) for name in names)
        candidate = WordNetMatches(synset, found, nouns, parents)
        if best is None or len(candidate.unknown) < len(best.unknown):
            best = candidate
    assert best is not None
    for match in best.matches:
        if match.name in fixes and match.kind == "unknown":
            raise ValueError(
                f"fixes must be nouns or synsets below {best.label(best.root)!r}, got "
                f"{fixes[match.name]!r} for {match.name!r}"
            )
    return best


def read_nouns(wordnet: Any) -> Nouns:
    """The nouns of a folder, a JSON file, a dictionary or a reader of nltk."""
    if isinstance(wordnet, Mapping):
        return _from_entries((s, entry[0], entry[1]) for s, entry in wordnet.items())
    if isinstance(wordnet, (str, os.PathLike)):
        path = Path(wordnet)
        if path.is_dir():
            return _from_folder(path)
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            return read_nouns(json.load(file))
    if not hasattr(wordnet, "all_synsets"):
        raise TypeError(
            "wordnet must be a folder, a JSON file, a dictionary or a reader of nltk, got "
            f"{type(wordnet).__name__}"
        )
    return _from_entries(
        (_synset_id(s.offset()), s.lemma_names(), sorted(_synset_id(h.offset()) for h in _above(s)))
        for s in wordnet.all_synsets("n")
    )


def key(name: str) -> str:
    """What is the same for all spellings of a noun."""
    return re.sub(r"['’]s\b|[\W_]+", "", name.lower().replace("_", " "))


def _match(nouns: Nouns, below: set[str], name: str, fix: str | None) -> Match:
    words = [name] if fix is None else [fix]
    if fix is None:
        parts = re.split(r"[\s_]+", name.strip())
        words = [" ".join(parts[i:]) for i in range(len(parts))]
    for i, query in enumerate(words):
        synsets = tuple(s for s in _synsets(nouns, query) if s in below)
        if synsets:
            kind = "fixed" if fix is not None else "last words" if i else "name"
            return Match(name, query, kind, synsets)
    return Match(name, name, "unknown", ())


def _synsets(nouns: Nouns, query: str) -> list[str]:
    """The synsets of a noun, or the one that goes by that id."""
    return [query] if query in nouns.lemmas else nouns.senses.get(key(query), [])


def _from_entries(entries: Any) -> Nouns:
    lemmas: dict[str, list[str]] = {}
    hypernyms: dict[str, list[str]] = {}
    senses: dict[str, list[str]] = {}
    for synset, names, above in entries:
        lemmas[synset] = [name.replace("_", " ") for name in names]
        hypernyms[synset] = list(above)
        for name in dict.fromkeys(map(key, names)):
            senses.setdefault(name, []).append(synset)
    return Nouns(lemmas, hypernyms, senses)


def _from_folder(folder: Path) -> Nouns:
    """WordNet's own files, as the manual page wndb(5WN) describes them."""
    nouns = _from_entries(_data_entries(folder / "data.noun"))
    if not nouns.lemmas:
        raise ValueError(f"wordnet must be a folder of WordNet 3, got {folder} without nouns")
    # data.noun is in the order of offsets, index.noun has the most frequent sense first.
    by_frequency: dict[str, list[str]] = {}
    with open(folder / "index.noun", encoding="utf-8") as file:
        for line in file:
            if not line.startswith(" "):  # the licence
                fields = line.split()
                offsets = fields[-int(fields[2]) :]
                known = by_frequency.setdefault(key(fields[0]), [])
                known += [s for s in map(_synset_id, offsets) if s not in known]
    nouns.senses.update(by_frequency)
    return nouns


def _data_entries(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(" "):  # the licence
                continue
            fields = line.split(" | ")[0].split()
            n_words = int(fields[3], 16)
            n_pointers = int(fields[4 + 2 * n_words])
            pointers = [
                fields[i : i + 3]
                for i in range(5 + 2 * n_words, 5 + 2 * n_words + 4 * n_pointers, 4)
            ]
            yield (
                _synset_id(fields[0]),
                fields[4 : 4 + 2 * n_words : 2],
                [_synset_id(offset) for symbol, offset, pos in pointers if symbol in ("@", "@i")],
            )


def _synset_id(offset: int | str) -> str:
    return f"n{int(offset):08d}"


def _above(synset: Any) -> list[Any]:
    """The hypernyms, which nltk keeps in sets: their order changes between processes."""
    return [*synset.hypernyms(), *synset.instance_hypernyms()]
