"""Class pictures made on one network, shown to networks they were not made on: every method, Lucent 0.1.8, and photographs.

    python benchmarks/recognition.py [CARD] [--models DIR] [--data DIR] [--classes N] [--seeds K] [--methods A,B] [--race]
                                     [--set OPTION=VALUE] [--cache DIR] [--out DIR] [--quick] [--json]

CARD names network A, on which the pictures are made; every other card in DIR is a judge. Classes are drawn at random, with a fixed
seed, from those that have photographs (CLASSINDEX_anything.jpg). A judge sees the whole picture, resized to its own input (bicubic,
antialiased), and the photographs as `Model.predict` opens them. Columns, a judge at a time:

top-1, top-5   share of the pictures whose class is the judge's first answer, or among its first five
p              the judge's mean probability of the class
plausible      cosine between the picture and the nearest photograph of its class, in what the judge's last layer with weights is given,
               averaged over positions; a photograph is compared with the other photographs of its class
Fréchet        distance of these features from those of all photographs, on the first principal axes of the photographs (their number is
               printed, and is the same for every row), full covariances there, divided by the photographs' own variance on these axes
CPU s          seconds a picture, set-up included, one thread, process time

Lucent runs as published on the same module: `render_vis`, objective of the class channel, its default transforms and rate, a picture
of the network's own size, 512 steps. Its last transform normalises by ImageNet's mean and deviation; where A's card states others, a
wrapper puts this right. `--lucent-prepared` runs the same on Penlight's folded copy of the network (the same function up to rounding);
its seconds are then those of a few steps as published, scaled. `--race` looks for the fewest steps at which Penlight's default is at
least as often recognised, and with at least the mean probability, as Lucent's pictures of the same classes.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import penlight
from penlight.errors import PenlightError
from penlight.inputs import open_data
from penlight.models import Model
from penlight.techniques.contract import methods
from penlight.techniques.visualize.schedule import stream

DEFAULT = "penlight"
# Options that keep a method's cost feasible here; what a row was made with is printed below the table.
OPTIONS: dict[str, dict[str, Any]] = {
    "maco": {"crops": 4, "steps": 128, "size": 224},
    "mean-image": {"facets": 1, "steps": 150},
    "yosinski": {"steps": 400},
}
QUICK_STEPS, QUICK_CLASSES, QUICK_LUCENT = 32, 4, 16
LUCENT_STEPS, LUCENT_TIMED = 512, 4
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what Lucent normalises by
LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256)  # steps of the race
MOST_AXES = 32  # of the Fréchet distance: at most these, and at most a quarter of the pictures of the shortest row
TILE = 160
Pictures = NDArray[np.uint8]  # (classes, seeds, H, W, 3)


@dataclass
class Row:
    """One way to make pictures, and what the judges say of them."""

    name: str
    seconds: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    data: bool = False
    size: tuple[int, int] | None = None
    refused: str = ""
    judges: dict[str, dict[str, float | None]] = field(default_factory=dict)


class Judge:
    """A network that says what it sees, and with which features."""

    def __init__(self, model: Model, photographs: Mapping[int, Sequence[Path]], cache: Path | None) -> None:
        self.model, self.name = model, Path(model.reference).stem
        self.files = [(index, file) for index in sorted(photographs) for file in photographs[index]]
        self.truth = np.array([index for index, _ in self.files])
        self.last = self._last()
        self.probabilities, self.features = self._photographs(cache)

    def _last(self) -> nn.Module:
        """The last module with weights whose output has one value a class."""
        found: list[nn.Module] = []
        handles = []
        for module in self.model.network.modules():
            if next(module.parameters(recurse=False), None) is not None:
                handles.append(module.register_forward_hook(lambda one, given, made: found.append(one)))
        try:
            self.model.probabilities(np.zeros((1, *self.model.contract.shape), np.uint8))
        finally:
            for handle in handles:
                handle.remove()
        return found[-1]

    def look(self, inputs: NDArray[Any] | list[Path]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(probabilities (N, classes), features (N, D)) of pictures to the judge's contract, or of files."""
        given: list[Tensor] = []
        handle = self.last.register_forward_pre_hook(
            lambda module, arguments: given.append(arguments[0].detach().clone())
        )
        try:
            probabilities = self.model.predict(inputs)
        finally:
            handle.remove()
        features = [pooled(one) for one in given]
        return probabilities, torch.cat(features).float().numpy()

    def _photographs(self, cache: Path | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        paths = [file for _, file in self.files]
        stamp = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in paths]
        kept = None if cache is None else cache / f"photographs-{digest('photographs', self.model.hash, stamp)}.npz"
        if kept is not None and kept.exists():
            with np.load(kept, allow_pickle=False) as stored:
                return stored["probabilities"], stored["features"]
        probabilities, features = self.look(paths)
        if kept is not None:
            store(kept, probabilities=probabilities, features=features)
        return probabilities, features

    def sees(self, pictures: Pictures) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`look` at pictures of any size, classes first, in the order class by class, seed by seed."""
        flat = torch.from_numpy(pictures.reshape(-1, *pictures.shape[2:])).permute(0, 3, 1, 2).float() / 255
        size = self.model.contract.size
        if tuple(flat.shape[2:]) != tuple(size):
            flat = F.interpolate(flat, size=list(size), mode="bicubic", antialias=True, align_corners=False)
        return self.look(flat.clamp(0, 1).numpy())


def pooled(given: Tensor) -> Tensor:
    """Features (N, D) from what a last layer is given: (N, D), (N, D, H, W) or (N, tokens, D)."""
    if given.ndim == 4:
        return given.mean((2, 3))
    return given.mean(1) if given.ndim == 3 else given


def digest(*names: Any) -> str:
    return hashlib.sha256(json.dumps(names, default=str).encode()).hexdigest()[:24]


def store(path: Path, **arrays: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


# ---------------------------------------------------------------------------------------------------- scores


def verdict(
    judge: Judge, classes: Sequence[int], probabilities: NDArray[np.float32], features: NDArray[np.float32], axes: int,
    own: NDArray[np.int64] | None = None,
) -> dict[str, float | None]:  # fmt: skip
    """What a judge says of a row; `classes` (N,) of its pictures, `own` which photographs they are if they are some."""
    index = np.asarray(classes)
    of = probabilities[np.arange(len(index)), index]
    rank = (probabilities > of[:, None]).sum(1)
    return {
        "n": len(index),
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
        "probability": float(of.mean()),
        "log_probability": float(np.log(np.maximum(of, 1e-12)).mean()),
        "plausibility": plausibility(judge, index, features, own),
        "frechet": frechet(features, judge.features, axes),
    }


def plausibility(
    judge: Judge, index: NDArray[np.int64], features: NDArray[np.float32], own: NDArray[np.int64] | None
) -> float | None:
    """Mean cosine to the nearest photograph of the class; None where there is no other one."""
    real = judge.features / np.linalg.norm(judge.features, axis=1, keepdims=True)
    made = features / np.linalg.norm(features, axis=1, keepdims=True)
    nearest = []
    for n, cls in enumerate(index):
        same = judge.truth == cls
        if own is not None:
            same[own[n]] = False
        if same.any():
            nearest.append(float((real[same] @ made[n]).max()))
    return float(np.mean(nearest)) if nearest else None


def frechet(made: NDArray[np.float32], real: NDArray[np.float32], axes: int) -> float:
    """|μ − μ'|² + tr(C + C' − 2 (C C')^½) on the first principal axes of `real`, as a share of tr C' (Heusel et al. 2017)."""
    centre = real.mean(0, dtype=np.float64)
    _, _, directions = np.linalg.svd(real - centre, full_matrices=False)
    a, b = (made - centre) @ directions[:axes].T, (real - centre) @ directions[:axes].T
    ca, cb = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cb)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ ca @ root).clip(0)).sum()
    between = np.square(a.mean(0) - b.mean(0)).sum()
    return float((between + np.trace(ca) + np.trace(cb) - 2 * cross) / np.trace(cb))


# ---------------------------------------------------------------------------------------------------- pictures


def photographs(folder: Path) -> dict[int, list[Path]]:
    """Files named CLASSINDEX_*.jpg by class."""
    found: dict[int, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        number, underscore, _ = file.name.partition("_")
        if underscore and number.isascii() and number.isdigit() and file.suffix.lower() in (".jpg", ".jpeg", ".png"):
            found.setdefault(int(number), []).append(file)
    return found


def draw(model: Model, name: str, options: Mapping[str, Any], classes: Sequence[int], seeds: int,
         seed: int, folder: Path) -> tuple[Pictures, bool]:  # fmt: skip
    """Pictures of the classes, and whether the method was given the photographs."""
    technique = methods["visualize"][name]
    units = [f"{model.class_layer}:{index}" for index in classes]
    data = folder if technique.reads_data else None
    if not technique.reads_survey:
        found = penlight.visualize(model, units, method=name, seed=seed, data=data, seeds=seeds, **options)
        return found.images, data is not None
    # several pictures of a unit are its facets there, so every seed is a run of its own
    rounds = [
        penlight.visualize(model, units, method=name, seed=seed + n, data=data, **options).images for n in range(seeds)
    ]
    return np.concatenate(rounds, axis=1), True


class Normalised(nn.Module):
    """A network behind Lucent's normalisation: what Lucent's transforms put out is brought to what the network's card states."""

    def __init__(self, network: nn.Module, model: Model) -> None:
        super().__init__()
        self.network = network
        mean, std = (torch.from_numpy(values) for values in model.contract.statistics())
        theirs = [torch.tensor(values).reshape(3, 1, 1) for values in IMAGENET]
        self.register_buffer("gain", theirs[1] / std)
        self.register_buffer("offset", (theirs[0] - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.network(x * self.gain + self.offset)
        return made


class Lucent:
    """torch-lucent's default on network A."""

    def __init__(self, model: Model, steps: int, prepared: bool, cache: Path | None) -> None:
        self.model, self.steps, self.prepared, self.cache = model, steps, prepared, cache
        self.size = min(model.contract.size)
        mean, std = (np.resize(values, 3) for values in (model.contract.mean, model.contract.std))
        self.fits = bool(np.allclose(mean, IMAGENET[0], atol=1e-3) and np.allclose(std, IMAGENET[1], atol=1e-3))
        self.networks: dict[bool, nn.Module] = {}

    def network(self, prepared: bool) -> nn.Module:
        if prepared not in self.networks:
            keep = [str(self.model.class_layer)]
            plain = self.model.prepared(keep) if prepared else copy.deepcopy(self.model.network).eval()
            self.networks[prepared] = plain if self.fits else Normalised(plain, self.model).eval()
        return self.networks[prepared]

    def layer(self, prepared: bool) -> str:
        """The class layer by Lucent's name; its own alias for the last module where the scores belong to none."""
        path, network = str(self.model.class_layer), self.network(prepared)
        inner = network if self.fits else network.network
        if path in dict(inner.named_modules()):  # type: ignore[union-attr]
            return ("" if self.fits else "network_") + path.replace(".", "_")
        return "labels"

    def render(self, index: int, seed: int, steps: int, prepared: bool) -> NDArray[np.uint8]:
        from lucent.optvis import param, render

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # Lucent's transforms draw from NumPy's global numbers
            [picture] = render.render_vis(
                self.network(prepared), f"{self.layer(prepared)}:{index}", lambda: param.image(self.size),
                thresholds=(steps,), show_image=False, progress=False, verbose=False,
            )  # fmt: skip
        return np.asarray(picture[0] * 255).round().clip(0, 255).astype(np.uint8)

    def pictures(self, classes: Sequence[int], seeds: int, seed: int) -> tuple[Pictures, float]:
        """(pictures, mean seconds a picture as published)."""
        import lucent

        made, seconds = [], []
        told = (
            "lucent",
            getattr(lucent, "__version__", "0.1.8"),
            self.model.hash,
            self.steps,
            self.size,
            self.prepared,
        )
        for index in classes:
            for k in range(seeds):
                kept = None if self.cache is None else self.cache / f"lucent-{digest(*told, index, seed + k)}.npz"
                if kept is not None and kept.exists():
                    with np.load(kept, allow_pickle=False) as stored:
                        made.append(stored["picture"])
                        seconds.append(float(stored["seconds"]))
                    continue
                start = time.process_time()
                made.append(self.render(index, seed + k, self.steps, self.prepared))
                seconds.append(time.process_time() - start)
                if kept is not None:
                    store(kept, picture=made[-1], seconds=np.array(seconds[-1]))
        stacked = np.stack(made).reshape(len(classes), seeds, *made[0].shape)
        return stacked, self.published() if self.prepared else float(np.mean(seconds))

    def published(self) -> float:
        """Seconds a picture as published, from a few steps after a warm-up."""
        self.render(0, 0, 1, False)
        start = time.process_time()
        self.render(0, 0, LUCENT_TIMED, False)
        return (time.process_time() - start) / LUCENT_TIMED * self.steps


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sheet(pictures: Pictures, path: Path) -> None:
    """First seed of every class, in as many columns as rows or up to twice as many."""
    columns = max(1, min(len(pictures), round((len(pictures) * 1.6) ** 0.5)))
    rows = -(-len(pictures) // columns)
    ground = Image.new("RGB", (columns * (TILE + 2), rows * (TILE + 2)), "white")
    for n, one in enumerate(pictures[:, 0]):
        at = ((n % columns) * (TILE + 2), (n // columns) * (TILE + 2))
        ground.paste(Image.fromarray(one).resize((TILE, TILE), Image.Resampling.BICUBIC), at)
    path.parent.mkdir(parents=True, exist_ok=True)
    ground.save(path)


# ---------------------------------------------------------------------------------------------------- rows


class Bench:
    """Network A, its judges and the classes; makes the rows."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.model = penlight.load(str(given.card))
        self.files = photographs(given.data)
        count = len(self.model.labels or ())
        able = [index for index in sorted(self.files) if not count or index < count]
        order = torch.randperm(len(able), generator=stream("recognition", given.seed, "classes")).tolist()
        self.classes = [able[n] for n in order[: given.classes]]
        self.axes = max(1, min(MOST_AXES, len(self.classes) // 4))
        with quiet():
            self.judges = [Judge(penlight.load(str(card)), self.files, given.cache) for card in given.judges]
        self.sheets = given.out
        if self.sheets is not None:
            self.sheets.mkdir(parents=True, exist_ok=True)
            names = [str(index) if self.model.labels is None else self.model.labels[index] for index in self.classes]
            (self.sheets / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")

    def judged(self, row: Row, pictures: Pictures, shown: bool = True) -> Row:
        truth = [index for index in self.classes for _ in range(pictures.shape[1])]
        for judge in self.judges:
            row.judges[judge.name] = verdict(judge, truth, *judge.sees(pictures), self.axes)
        row.size = (pictures.shape[2], pictures.shape[3])
        if self.sheets is not None and shown:
            sheet(pictures, self.sheets / f"{row.name.replace(' ', '-')}.png")
        return row

    def ceiling(self) -> Row:
        row = Row("photographs")
        for judge in self.judges:
            own = np.flatnonzero(np.isin(judge.truth, self.classes))
            row.judges[judge.name] = verdict(
                judge, judge.truth[own].tolist(), judge.probabilities[own], judge.features[own], self.axes, own
            )
        if self.sheets is not None:
            shape = self.model.contract.shape
            firsts = [open_data([self.files[c][0]], self.model.contract).read(0) for c in self.classes]
            assert all(one.shape == shape for one in firsts)
            sheet(np.stack(firsts).transpose(0, 2, 3, 1)[:, None], self.sheets / "photographs.png")
        return row

    def method(self, name: str, steps: int = 0, shown: bool = True) -> Row:
        technique = methods["visualize"][name]
        has = {one.name for one in fields(technique)}  # type: ignore[arg-type]
        options = dict(OPTIONS.get(name, {})) | {key: value for key, value in self.given.set.items() if key in has}
        steps = steps or self.given.steps
        if steps and "steps" in has:
            options["steps"] = steps
        row = Row(name, options=options)
        start = time.process_time()
        try:
            given = self.given
            made, row.data = draw(self.model, name, options, self.classes, given.seeds, given.seed, given.data)
        except PenlightError as error:
            row.refused = str(error)
            return row
        row.seconds = (time.process_time() - start) / (made.shape[0] * made.shape[1])
        return self.judged(row, made, shown)

    def lucent(self) -> Row:
        given = self.given
        theirs = Lucent(self.model, given.lucent_steps, given.lucent_prepared, given.cache)
        row = Row(
            "lucent", options={"steps": given.lucent_steps, "size": theirs.size, "prepared": given.lucent_prepared}
        )
        row.options["normalisation"] = "as its own" if theirs.fits else "ImageNet's, brought to the card's by a wrapper"
        with quiet():
            made, row.seconds = theirs.pictures(self.classes, given.seeds, given.seed)
        return self.judged(row, made)

    def race(self, lucent: Row) -> dict[str, Any]:
        """The fewest steps of the ladder at which the default is recognised as well as Lucent's pictures, by every judge."""
        tried = []
        for steps in LADDER:
            row = self.method(DEFAULT, steps, shown=False)  # the sheet is that of the default as it is
            tried.append({"steps": steps, "seconds": row.seconds, "judges": row.judges})
            if row.refused or all(beats(row.judges[name], lucent.judges[name]) for name in row.judges):
                break
        assert lucent.seconds is not None
        done = not row.refused and all(beats(row.judges[name], lucent.judges[name]) for name in row.judges)
        return {
            "steps": steps if done else None,
            "seconds": row.seconds if done else None,
            "ratio": lucent.seconds / row.seconds if done and row.seconds else None,
            "tried": tried,
        }


def beats(ours: Mapping[str, float | None], theirs: Mapping[str, float | None]) -> bool:
    return all((ours[key] or 0.0) >= (theirs[key] or 0.0) for key in ("top1", "probability"))


# ---------------------------------------------------------------------------------------------------- output


def number(value: float | None, width: int, digits: int) -> str:
    return f"{'–':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def show(row: Row, judges: Sequence[Judge]) -> None:
    if row.refused:
        print(f"{row.name:14} does not run: {row.refused}", flush=True)
        return
    for n, judge in enumerate(judges):
        said = row.judges[judge.name]
        size = "" if row.size is None else "×".join(map(str, row.size))
        print(
            f"{row.name if not n else '':14} {judge.name:16} {said['n']:>4} {number(said['top1'], 6, 3)} {number(said['top5'], 6, 3)}"
            f" {number(said['probability'], 6, 3)} {number(said['plausibility'], 9, 3)} {number(said['frechet'], 8, 3)}"
            f" {number(row.seconds if not n else None, 7, 2)} {size if not n else '':>9}",
            flush=True,
        )


def notes(bench: Bench, rows: Sequence[Row]) -> None:
    ceiling, default = rows[0], next((row for row in rows if row.name == DEFAULT and row.judges), None)
    print(f"\nFréchet distance on {bench.axes} principal axes of {len(bench.judges[0].truth)} photographs' features.")
    for row in rows[1:]:
        told = ", ".join(f"{name} {value}" for name, value in row.options.items())
        print(f"{row.name}: {told or 'its defaults'}{'; was given the photographs' if row.data else ''}")
    for judge in bench.judges if default is not None else ():
        assert default is not None
        most = ceiling.judges[judge.name]["top1"]
        share = f"{(default.judges[judge.name]['top1'] or 0.0) / most:.0%}" if most else "–"
        print(f"{judge.name} recognises {DEFAULT}'s pictures {share} as often as photographs.")


def show_race(raced: Mapping[str, Any], lucent: Row) -> None:
    print(f"\ntime to equal recognition (Lucent {lucent.seconds:.1f} s a picture):")
    for one in raced["tried"]:
        said = "  ".join(f"{name} {v['top1']:.3f} / {v['probability']:.3f}" for name, v in one["judges"].items())
        print(f"  {one['steps']:>4} steps {number(one['seconds'], 7, 2)} s   {said}")
    if raced["steps"] is None:
        print("  not reached on this ladder")
    else:
        print(
            f"  reached after {raced['steps']} steps: {raced['seconds']:.2f} s, 1/{raced['ratio']:.1f} of Lucent's time"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Class pictures shown to networks they were not made on.")
    parser.add_argument("card", nargs="?", type=Path, help="card of network A; the same as --on")
    parser.add_argument("--on", type=Path, help="card of network A (default: mobilenet_v2.toml in --models)")
    parser.add_argument("--models", type=Path, default=Path("../shared/models"), metavar="DIR", help="folder of cards")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/imagenet-sample"), metavar="DIR",
                        help="folder of photographs named CLASSINDEX_*.jpg")  # fmt: skip
    parser.add_argument("--classes", type=int, default=50, metavar="N", help="number of random classes")
    parser.add_argument("--seeds", type=int, default=2, metavar="K", help="pictures a class")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="draws the classes and starts the pictures")
    parser.add_argument("--methods", default="", metavar="A,B", help="only these; all that are registered otherwise")
    parser.add_argument("--steps", type=int, default=0, help="steps of every method that has them (default: its own)")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE",
                        help="of every method that has this option, as in --set leak=0; may be given several times")  # fmt: skip
    parser.add_argument("--no-lucent", action="store_true", help="leave Lucent out")
    parser.add_argument("--lucent-steps", type=int, default=0, help=f"default {LUCENT_STEPS}")
    parser.add_argument("--lucent-prepared", action="store_true", help="Lucent on Penlight's folded copy; see above")
    parser.add_argument("--race", action="store_true", help="time to equal recognition")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keeps Lucent's pictures and the photographs' features"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a contact sheet of every row, PNG; its classes, classes.txt"
    )
    parser.add_argument("--quick", action="store_true", help="few classes and steps; a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    given = parser.parse_args(arguments)
    given.card = given.on or given.card or given.models / "mobilenet_v2.toml"
    if not given.card.exists() and (given.models / given.card.name).exists():
        given.card = given.models / given.card.name
    for path in (given.card, given.models, given.data):
        if not path.exists() and given.quick:
            print(f"recognition: left out, there is no {path}; --models takes a folder of cards, --data photographs")
            sys.exit(0)
        if not path.exists():
            parser.error(f"there is no {path}; --models takes a folder of cards, --data one of photographs")
    given.judges = [card for card in sorted(given.models.glob("*.toml")) if card.resolve() != given.card.resolve()]
    if not given.judges:
        parser.error(f"{given.models} has no card besides {given.card.name}: somebody else has to judge")
    given.methods = given.methods.split(",") if given.methods else list(methods["visualize"])
    unknown = [name for name in given.methods if name not in methods["visualize"]]
    if unknown:
        parser.error(f"there is no method {unknown[0]!r}; there are {', '.join(methods['visualize'])}")
    for one in given.set:
        if "=" not in one:
            parser.error(f"--set {one}: write OPTION=VALUE, as in leak=0")
    given.set = dict(one.split("=", 1) for one in given.set)
    known = {one.name for name in given.methods for one in fields(methods["visualize"][name])}  # type: ignore[arg-type]
    for key, value in given.set.items():
        if key not in known:
            parser.error(f"--set {key}: none of these methods has such an option ({', '.join(given.methods)})")
        try:
            given.set[key] = json.loads(value)
        except ValueError:
            given.set[key] = value  # a word
    if given.quick:
        given.classes, given.seeds = min(given.classes, QUICK_CLASSES), 1
        given.steps, given.lucent_steps = given.steps or QUICK_STEPS, given.lucent_steps or QUICK_LUCENT
    given.lucent_steps = given.lucent_steps or LUCENT_STEPS
    if not photographs(given.data):
        parser.error(f"{given.data} holds no photographs named CLASSINDEX_*.jpg")
    if given.classes < 2 or given.seeds < 1:
        parser.error("take at least two classes and one seed")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    torch.set_num_threads(1)
    if not given.no_lucent:
        try:
            with quiet():
                import lucent as _  # noqa: F401
        except ImportError:
            print("Lucent is not installed (pip install torch-lucent==0.1.8): its row is left out", file=sys.stderr)
            given.no_lucent = True
    bench = Bench(given)
    if not given.json:
        print(f"made on {given.card.stem}, {len(bench.classes)} classes, {given.seeds} seeds")
        head = f"{'pictures':14} {'judge':16} {'n':>4} {'top-1':>6} {'top-5':>6} {'p':>6}"
        print(f"{head} {'plausible':>9} {'Fréchet':>8} {'CPU s':>7} {'pixels':>9}")
    rows: list[Row] = []

    def done(row: Row) -> Row:
        rows.append(row)
        if not given.json:
            show(row, bench.judges)
        return row

    done(bench.ceiling())
    for name in given.methods:
        done(bench.method(name))
    lucent = None if given.no_lucent else done(bench.lucent())
    raced = bench.race(lucent) if given.race and lucent is not None else None
    if given.json:
        told = {"benchmark": "recognition", "threads": 1, "clock": "process_time", "made_on": str(given.card.name)}
        told |= {"classes": bench.classes, "seeds": given.seeds, "seed": given.seed, "frechet_axes": bench.axes}  # type: ignore[dict-item]
        told |= {"rows": [asdict(row) for row in rows], "race": raced}  # type: ignore[dict-item]
        json.dump(told, sys.stdout, indent=1)
        print()
        return
    notes(bench, rows)
    if raced is not None:
        assert lucent is not None
        show_race(raced, lucent)


if __name__ == "__main__":
    main()
