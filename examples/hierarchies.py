"""The class hierarchies of CUB200, Cars196 and Omniglot, as ProcSim's semantic noise needs them.

Reads from a folder, given by ``--data`` or by the variable ``NOISYDML_DATA``:

* ``class_lists.json``: ``{"cub200": [name, ...], "cars196": [{"name", "make", "body"}, ...]}``, the
  class names of CUB-200-2011 (underscores for spaces) and of Cars196;
* ``omniglot28.npz`` with ``class_names``, such as ``"Greek/character01"``;
* WordNet, unless ``--wordnet`` names another place: ``wordnet_nouns.json.gz``.

Writes, for each data set, the tree as text and as a picture, and prints what was found and how many
nodes there are. What is not there is skipped.

    apt-get install wordnet-base
    NOISYDML_DATA=data python examples/hierarchies.py --wordnet /usr/share/wordnet
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from noisydml.noise import ClassHierarchy, match_wordnet

# WordNet has these birds under another name, or not at all.
BIRDS = {
    "Gadwall": "dabbling duck",
    "Geococcyx": "roadrunner",
    "Green_Violetear": "hummingbird",
    "Sayornis": "phoebe",
}
# The last word has several meanings: CUB's birds are those of North America.
AMERICAN = {
    "Blackbird": "New World blackbird",
    "Flycatcher": "New World flycatcher",
    "Grackle": "crow blackbird",
    "Lark": "n01527617",
    "Oriole": "New World oriole",
    "Sparrow": "New World sparrow",
    "Warbler": "New World warbler",
}
# The name itself has several meanings.
MEANT = {
    "American_Goldfinch": "New World goldfinch",
    "European_Goldfinch": "Carduelis carduelis",
    "Ovenbird": "Seiurus aurocapillus",
    "Rock_Wren": "Salpinctes obsoletus",
    "Spotted_Catbird": "bowerbird",
    "Tree_Sparrow": "Spizella arborea",
    "Tree_Swallow": "Iridoprocne bicolor",
}
# WordNet's vans and pickups are trucks, and no cars.
TRUCKS = {"Van": "car", "Pickup": "car"}
# Fourteen names have a trim in place of a body.
BODIES = {
    "Acura TL Type-S 2008": "Sedan",
    "Acura Integra Type R 2001": "Coupe",
    "Buick Regal GS 2012": "Sedan",
    "Chevrolet Corvette ZR1 2012": "Coupe",
    "Chevrolet Corvette Ron Fellows Edition Z06 2007": "Coupe",
    "Chevrolet HHR SS 2010": "Wagon",
    "Chevrolet Cobalt SS 2010": "Coupe",
    "Chevrolet TrailBlazer SS 2009": "SUV",
    "Chrysler 300 SRT-8 2010": "Sedan",
    "Dodge Challenger SRT8 2011": "Coupe",
    "Dodge Charger SRT-8 2009": "Sedan",
    "FIAT 500 Abarth 2012": "Hatchback",
    "Jaguar XK XKR 2012": "Coupe",
    "Lamborghini Gallardo LP 570-4 Superleggera 2012": "Coupe",
}


def birds(names: list[str], wordnet: str) -> ClassHierarchy:
    """CUB200 below "bird", unknown and ambiguous names settled by hand."""
    found = match_wordnet(names, "bird", wordnet)
    print("as found:", found.report().splitlines()[0])
    fixes = {name: BIRDS[name] for name in found.unknown}
    for match in found.matches:
        if match.kind == "last words" and match.name.split("_")[-1] in AMERICAN:
            fixes[match.name] = AMERICAN[match.name.split("_")[-1]]
    fixes |= MEANT
    print("by hand: ", match_wordnet(names, "bird", wordnet, fixes=fixes).report().splitlines()[0])
    return ClassHierarchy.from_wordnet(names, "bird", wordnet, fixes=fixes)


def cars(entries: list[dict], wordnet: str) -> ClassHierarchy:
    """Cars196 below "car": WordNet for the bodies, below these the makes, and then the classes."""
    bodies = [entry["body"] or BODIES[entry["name"]] for entry in entries]
    kinds = sorted(set(bodies))
    print("as found:", match_wordnet(kinds, "car", wordnet).report())
    tree = ClassHierarchy.from_wordnet(kinds, "car", wordnet, fixes=TRUCKS)
    paths = [
        (*tree.path(body), entry["make"], entry["name"])
        for body, entry in zip(bodies, entries, strict=True)
    ]
    return ClassHierarchy.from_paths(paths, classes=[entry["name"] for entry in entries])


def describe(tree: ClassHierarchy) -> str:
    """The numbers to compare with a figure."""
    folded = tree.fold()
    inner = len(folded.names) - len(folded.classes)
    children = np.bincount(folded.parents[1:], minlength=len(folded.names))
    groups = np.bincount(folded.parents[folded.leaves])
    return (
        f"{len(tree.classes)} classes, {len(tree.names)} nodes, depth {tree.depth}; folded "
        f"{inner} groups, depth {folded.depth}, {children[0]} children of the root, "
        f"{np.median(groups[groups > 0]):.0f} classes in the median group that has any, "
        f"{groups.max()} in the largest"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("NOISYDML_DATA"))
    parser.add_argument("--wordnet", help="folder or file of WordNet")
    parser.add_argument("--output", type=Path, default=Path("outputs/hierarchies"))
    options = parser.parse_args()
    if options.data is None:
        parser.error("give the folder of the class lists by --data or NOISYDML_DATA")
    data = Path(options.data)
    wordnet = options.wordnet or str(data / "wordnet_nouns.json.gz")
    options.output.mkdir(parents=True, exist_ok=True)

    trees: dict[str, ClassHierarchy] = {}
    if (data / "class_lists.json").exists():
        lists = json.loads((data / "class_lists.json").read_text(encoding="utf-8"))
        trees["cub200"] = birds(lists["cub200"], wordnet)
        trees["cars196"] = cars(lists["cars196"], wordnet)
        trees["cub200_train"] = trees["cub200"].restrict(list(range(100)))
        trees["cars196_train"] = trees["cars196"].restrict(list(range(98)))
    if (data / "omniglot28.npz").exists():
        with np.load(data / "omniglot28.npz", allow_pickle=False) as archive:
            trees["omniglot"] = ClassHierarchy.from_paths(archive["class_names"].tolist())
    for name, tree in trees.items():
        print(f"{name}: {describe(tree)}")
        text = tree.render()
        (options.output / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        draw(tree, options.output / f"{name}.svg", classes=name.startswith("cub"))


def draw(tree: ClassHierarchy, path: Path, classes: bool) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: small files
    matplotlib.rcParams["svg.hashsalt"] = "noisydml"
    import matplotlib.pyplot as plt

    figure = tree.plot(classes=classes).figure
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
