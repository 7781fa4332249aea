"""The paper's formulas as slow and plain as they are printed: what the tests compare with."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np


def otsu_threshold(losses: np.ndarray) -> float:
    """Algorithm 1, line by line, in floating point (i is 1-based there)."""
    ordered = sorted(losses)
    size = len(losses)
    candidates = [(ordered[i - 1] + ordered[i]) / 2 for i in range(2, size - 1)]
    best, threshold = math.inf, math.inf
    for candidate in candidates:
        low, high = losses[losses < candidate], losses[losses >= candidate]
        cost = sum(len(group) * np.var(group) for group in (low, high) if len(group)) / size
        if cost < best:
            best, threshold = cost, candidate
    return threshold


def proxy_nca(
    embeddings: np.ndarray, labels: list[int], proxies: np.ndarray, scale: float
) -> list[float]:
    """-log of the probability that a stochastic nearest neighbour is the own class's proxy."""

    def unit(vector):
        return vector / math.sqrt(math.fsum(x * x for x in vector))

    losses = []
    for embedding, label in zip(embeddings, labels, strict=True):
        distances = [
            math.fsum((x - p) ** 2 for x, p in zip(unit(embedding), unit(proxy), strict=True))
            for proxy in proxies
        ]
        # The nearest proxy's term is taken out of the sum, so that it never rounds to 0.
        nearest = min(distances)
        terms = [math.exp(-scale * (d - nearest)) for d in distances]
        losses.append(scale * (distances[label] - nearest) + math.log(math.fsum(terms)))
    return losses


def multi_similarity(
    embeddings: np.ndarray, labels: list[int], alpha: float, beta: float, base: float
) -> np.ndarray:
    """ProcSim Eq. 5, the loss of each sample as an anchor."""
    x = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    size, losses = len(x), []
    for i in range(size):
        s = x @ x[i]
        positive = [j for j in range(size) if labels[j] == labels[i] and j != i]
        negative = [j for j in range(size) if labels[j] != labels[i]]
        pull = sum(np.exp(-alpha * (s[j] - base)) for j in positive)
        push = sum(np.exp(beta * (s[j] - base)) for j in negative)
        losses.append(np.log1p(pull) / alpha + np.log1p(push) / beta)
    return np.array(losses)


def language_guidance(
    embeddings: np.ndarray,
    language: np.ndarray,
    labels: list[int],
    direction: str = "backward",
    temperature: float = 1.0,
    shift: float = 1.0,
    same_class: str = "fill",
) -> list[float]:
    """PLG, row by row: k matrices of language similarities (B, k, E), their mean, a divergence."""

    def cosine(a, b):
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    def softmax(row):
        exps = [math.exp(x / temperature) for x in row]
        return [e / math.fsum(exps) for e in exps]

    size, parts = language.shape[:2]
    rows = []
    for i in range(size):
        visual, meaning = [], []
        for j in range(size):
            similar = [cosine(language[i, k], language[j, k]) for k in range(parts)]
            filled = {"fill": labels[i] == labels[j], "diagonal": i == j, "keep": False}[same_class]
            visual.append(1 + shift if filled else cosine(embeddings[i], embeddings[j]))
            meaning.append(1 + shift if filled else sum(similar) / parts + shift)
        p, q = softmax(visual), softmax(meaning)
        if direction == "forward":
            p, q = q, p
        kl = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        rows.append(temperature**2 * kl)
    return rows


def neighbor_vote(
    neighbor_labels: list[int], label: int, weights: list[float] | None = None
) -> tuple[Fraction, int, Fraction, Fraction]:
    """N2D2, section 3.1, counted: score, majority, support, runner-up, in exact arithmetic."""
    votes: dict[int, Fraction] = {}
    for i, other in enumerate(neighbor_labels):
        weight = Fraction(1) if weights is None else Fraction(weights[i])
        votes[other] = votes.get(other, Fraction(0)) + weight
    most, total = max(votes.values(), default=Fraction(0)), sum(votes.values(), Fraction(0))
    if total == 0:
        return Fraction(1), label, Fraction(0), Fraction(0)
    own = votes.get(label, Fraction(0))
    majority = label if own == most else min(j for j, n in votes.items() if n == most)
    second = max((n for j, n in votes.items() if j != majority), default=Fraction(0))
    return own / most, majority, most / total, second / most


def clean_probability(
    embeddings: np.ndarray,
    labels: list[int],
    features: np.ndarray,
    feature_labels: list[int],
    temperature: float,
) -> list[float]:
    """PRISM Eq. 2 and 3, pair by pair; 1 for a class that the memory does not hold (Alg. 1)."""

    def unit(vector):
        return vector / max(math.sqrt(math.fsum(x * x for x in vector)), 1e-12)

    classes = sorted(set(feature_labels))
    probabilities = []
    for embedding, label in zip(embeddings, labels, strict=True):
        if label not in classes:
            probabilities.append(1.0)
            continue
        mean = {}
        for k in classes:
            cosines = [
                math.fsum(a * b for a, b in zip(unit(embedding), unit(v), strict=True))
                for v, y in zip(features, feature_labels, strict=True)
                if y == k
            ]
            mean[k] = math.fsum(cosines) / len(cosines)
        terms = [math.exp((mean[k] - max(mean.values())) / temperature) for k in classes]
        own = math.exp((mean[label] - max(mean.values())) / temperature)
        probabilities.append(own / math.fsum(terms))
    return probabilities
