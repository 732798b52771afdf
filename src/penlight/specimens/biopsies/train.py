"""Train the specimen `biopsies`, and write its weights, its held-out rows and its card.

    python -m penlight.specimens.biopsies.train --out DIR

Everything that shipped came out of this command with its default options. The table comes with scikit-learn, so
nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import numpy.typing as npt
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file
    from torch import Tensor

    from .network import Biopsies
except ModuleNotFoundError as error:  # a clear line instead of a traceback for a bare install
    sys.stderr.write(f"biopsies.train: the Python package {error.name!r} is missing; install it\n")
    raise SystemExit(2) from None

LABELS = ("malignant", "benign")
TARGET = "diagnosis"
HELD_OUT = 0.3  # share of the rows of each class that the network never sees
FOLDS, REPEATS, STARTS = 5, 5, 4
STEPS, PEAK, DECAY, SPARSE = 400, 0.01, 1.0, 0.002
LEAST = 0.03  # magnitude below which a weight of the first layer is set to zero in the end
FILES = ("biopsies.safetensors", "biopsies.csv", "biopsies.toml")
MEASURED = {
    "radius": "mean of distances from the nucleus' centre to points on its perimeter",
    "texture": "standard deviation of gray-scale values",
    "perimeter": "length of the nucleus' perimeter",
    "area": "area of the nucleus",
    "smoothness": "local variation in radius lengths",
    "compactness": "perimeter^2 / area - 1.0",
    "concavity": "severity of concave portions of the contour",
    "concave_points": "number of concave portions of the contour",
    "symmetry": "symmetry of the nucleus",
    "fractal_dimension": "'coastline approximation' - 1",
}
TAKEN = {
    "mean": "mean over the nuclei of the image",
    "error": "standard error over the nuclei of the image",
    "worst": "mean of the three largest values in the image",
}
Array = npt.NDArray[Any]
Figures = dict[str, float | int]


def table() -> tuple[list[str], Array, Array]:
    """Names of the 30 columns, their values (569, 30), and the classes (569,): 0 malignant, 1 benign."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ModuleNotFoundError:
        sys.stderr.write("biopsies.train: the table comes with scikit-learn; pip install scikit-learn\n")
        raise SystemExit(2) from None
    found = load_breast_cancer()
    return [str(name).replace(" ", "_") for name in found.feature_names], found.data, found.target


def split(classes: Array, share: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """(seen, held out): row numbers, in order, with the same share of every class held out."""
    held = np.zeros(len(classes), bool)
    for label in np.unique(classes):
        own = rng.permutation(np.flatnonzero(classes == label))
        held[own[: round(share * len(own))]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def folds(classes: Array, count: int, rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """(seen, held out) for every fold, each with its part of every class."""
    which = np.zeros(len(classes), np.int64)
    for label in np.unique(classes):
        own = rng.permutation(np.flatnonzero(classes == label))
        which[own] = np.arange(len(own)) % count
    return [(np.flatnonzero(which != k), np.flatnonzero(which == k)) for k in range(count)]


def fit(rows: Tensor, classes: Tensor, seed: int) -> tuple[Biopsies, float]:
    """A network after STEPS steps over all rows, its smallest first weights set to zero, and its loss with the penalty."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Biopsies()
    optimiser = torch.optim.AdamW(net.parameters(), PEAK, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, total_steps=STEPS)
    for _ in range(STEPS):
        loss = F.cross_entropy(net(rows), classes) + SPARSE * net.hidden1.weight.abs().sum()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        rate.step()
    with torch.no_grad():
        net.hidden1.weight[net.hidden1.weight.abs() < LEAST] = 0.0
    return net.eval(), float(loss.detach())


def train(values: Array, classes: Array, seed: int) -> tuple[Biopsies, Array, Array]:
    """The best of STARTS networks by its own loss on the rows it saw, and the rows' means and deviations."""
    mean, std = (np.array([float(f"{v:.6g}") for v in part]) for part in (values.mean(0), values.std(0)))
    rows, truth = torch.from_numpy((values - mean) / std).float(), torch.from_numpy(classes)
    fitted = [fit(rows, truth, seed * STARTS + start) for start in range(STARTS)]
    return min(fitted, key=lambda one: one[1])[0], mean, std


@torch.inference_mode()
def right(net: Biopsies, values: Array, classes: Array, mean: Array, std: Array) -> Array:
    """Whether each row is told right, bool (N,)."""
    scores = net(torch.from_numpy((values - mean) / std).float())
    return np.asarray(scores.argmax(1).numpy() == classes)


def cross_validated(values: Array, classes: Array, seed: int) -> list[float]:
    """Accuracy of every repeat of FOLDS-fold cross-validation over the whole table."""
    found = []
    for repeat in range(REPEATS):
        rng = np.random.default_rng((seed, 1, repeat))
        hits = [
            right(net, values[out], classes[out], mean, std)
            for k, (seen, out) in enumerate(folds(classes, FOLDS, rng))
            for net, mean, std in [train(values[seen], classes[seen], 100 + repeat * FOLDS + k)]
        ]
        found.append(float(np.concatenate(hits).mean()))
        print(f"cross-validation {repeat + 1} of {REPEATS}: {found[-1]:.4f}", flush=True)
    return found


def to_fp16(net: Biopsies) -> dict[str, Tensor]:
    """The state dict as it ships, and the network rounded to it in place."""
    state = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    net.load_state_dict({name: value.float() for name, value in state.items()})
    return state


def described(name: str) -> str:
    """What a column holds, in the words of the data's documentation."""
    taken, _, measured = name.partition("_") if not name.endswith("_error") else ("error", "", name[: -len("_error")])
    return f"{MEASURED[measured]}; {TAKEN[taken]}"


def card_text(names: Sequence[str], mean: Array, std: Array, figures: Figures) -> str:
    """The card as TOML."""
    columns = "".join(
        f'\n[[input.columns]]\nname = "{name}"\nmean = {m:.6g}\nstd = {s:.6g}\ndescription = "{described(name)}"\n'
        for name, m, s in zip(names, mean, std, strict=True)
    )
    told = "".join(
        f"{key} = {value:.4f}\n" if isinstance(value, float) else f"{key} = {value}\n" for key, value in figures.items()
    )
    return (
        'source = "module:penlight.specimens.biopsies.network:Biopsies"\nweights = "biopsies.safetensors"\n'
        'license = "data: CC BY 4.0, Wolberg, Mangasarian, Street and Street, doi:10.24432/C5DW2B"\n\n'
        f'[input]\nkind = "table"\ntarget = "{TARGET}"\nlabels = ["{LABELS[0]}", "{LABELS[1]}"]\n{columns}\n[figures]\n{told}'
    )


def csv_text(names: Sequence[str], values: Array, classes: Array) -> str:
    """Rows as CSV, every number as the data has it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*names, TARGET])
    writer.writerows(
        [*(repr(float(v)) for v in row), LABELS[label]] for row, label in zip(values, classes, strict=True)
    )
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; it is made if it is not there")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names, values, classes = table()
    seen, held = split(classes, HELD_OUT, np.random.default_rng(given.seed))
    accuracies = cross_validated(values, classes, given.seed)
    net, mean, std = train(values[seen], classes[seen], given.seed)
    state = to_fp16(net)
    hits = right(net, values[held], classes[held], mean, std)
    figures: Figures = {
        "accuracy_held_out": float(hits.mean()),
        "held_out_rows": len(held),
        "held_out_wrong": int((~hits).sum()),
        "training_rows": len(seen),
        "accuracy_training": float(right(net, values[seen], classes[seen], mean, std).mean()),
        "accuracy_cross_validated": float(np.mean(accuracies)),
        "accuracy_cross_validated_least": min(accuracies),
        "accuracy_cross_validated_most": max(accuracies),
        "sensitivity_malignant": float(hits[classes[held] == 0].mean()),
        "specificity_malignant": float(hits[classes[held] == 1].mean()),
        "first_weights_not_zero": int((net.hidden1.weight != 0).sum()),
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    save_file(state, str(given.out / FILES[0]))
    (given.out / FILES[1]).write_text(csv_text(names, values[held], classes[held]), "utf-8")
    (given.out / FILES[2]).write_text(card_text(names, mean, std, figures), "utf-8")
    for key, value in figures.items():
        print(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}")


if __name__ == "__main__":
    main()
