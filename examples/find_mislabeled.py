"""Find wrong labels in any embeddings: a table, a page to fix them on, a sheet of the worst.

    python examples/find_mislabeled.py --noise 0.1 --output outputs/mislabeled

Handwritten digits, of which some labels are replaced by another, with their pixels as embeddings;
put your own network's embeddings in their place. Writes issues.csv, issues.html and issues.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_digits

import noisydml
from noisydml import plot

mpl.use("Agg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noise", type=float, default=0.1, help="share of labels made wrong")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/mislabeled"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    data = load_digits()
    noisy = noisydml.noise.uniform(data.target, options.noise, seed=options.seed)
    result = noisydml.find_label_issues(data.data, noisy.labels)
    print(result.summary())

    found = noisy.is_noisy[result.issues.numpy()]
    print(f"\n{found.sum()} of the {noisy.is_noisy.sum()} labels made wrong are among them.")
    result.to_csv(options.output / "issues.csv")
    pictures = (255 - 15.9375 * data.images).astype(np.uint8)  # 0 to 16, black on white
    result.to_html(options.output / "issues.html", images=pictures, title="Digits to check")
    plot.contact_sheet(result, pictures).savefig(options.output / "issues.png", dpi=120)
    print(f"wrote issues.csv, issues.html and issues.png to {options.output}")


if __name__ == "__main__":
    main()
