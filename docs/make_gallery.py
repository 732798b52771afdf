"""Make the gallery of docs/gallery.md: every method side by side, on the specimen and on networks of yours.

    python docs/make_gallery.py letters
    python docs/make_gallery.py layers CARD.toml LAYER LAYER LAYER [--units 16] [--methods erhan,lucid,penlight] [--keep DIR] [--data DIR]
    python docs/make_gallery.py classes CARD.toml 'tabby' 'school bus' … [--methods lucid,penlight]
    python docs/make_gallery.py sheets DIR NAME          # of what benchmarks/recognition.py --classes 6 --out DIR has drawn
    python docs/make_gallery.py recognised DIR NAME      # the default's first pictures of recognition.py --out DIR, with their classes

The first needs nothing but the package; the others take any model card of a picture network (docs/models.md says how to write one for
torchvision's or timm's). Every run writes one JPEG or PNG to docs/pictures/gallery and prints its name. Rows of deep layers take long:
with --keep each is kept in a folder the moment it is done, and a run that was ended goes on there. mean-image starts from pictures
of yours, --data.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import penlight
from penlight.errors import PenlightError
from penlight.results.explain import shown
from penlight.techniques.contract import methods

OUT = Path(__file__).parent / "pictures" / "gallery"
SIDE, GAP, LEFT, TOP = 72, 4, 110, 22
FIRST = (
    "erhan",
    "simonyan",
    "yosinski",
    "oygard",
    "keras-vis",
    "deepdream",
    "lucid",
    "maco",
    "mean-image",
    "generator",
)
CHEAPER: dict[str, dict[str, Any]] = {
    "maco": {"crops": 8, "size": 160},
    "mean-image": {"facets": 1, "steps": 150},
}  # what is not run as published, for the gallery's cost
EXAMPLES = 30  # of a unit's strongest pictures, which mean-image looks at


def names(asked: str) -> list[str]:
    """The methods, the classic ones in order of time, others, and the default last."""
    if asked:
        return asked.split(",")
    others = [name for name in methods["visualize"] if name not in (*FIRST, "penlight")]
    return [name for name in (*FIRST, *others, "penlight") if name in methods["visualize"]]


def grid(rows: Sequence[tuple[str, Sequence[Any] | str]], heads: Sequence[str], side: int) -> Image.Image:
    """Rows of pictures (H, W, C), or of words where a method declined, under the columns' heads."""
    font = ImageFont.load_default(13)
    width, height = LEFT + len(heads) * (side + GAP), TOP + len(rows) * (side + GAP)
    canvas = Image.new("RGB", (width, height), "#faf8f2")
    draw = ImageDraw.Draw(canvas)
    for n, head in enumerate(heads):
        draw.text((LEFT + n * (side + GAP), 3), head[: max(3, side // 7)], font=font, fill="#3d372d")
    for r, (name, pictures) in enumerate(rows):
        top = TOP + r * (side + GAP)
        draw.text((4, top + side // 2 - 8), name, font=font, fill="#3d372d")
        if isinstance(pictures, str):
            draw.text((LEFT, top + side // 2 - 8), pictures[: (width - LEFT) // 7], font=font, fill="#8a4f00")
            continue
        for n, picture in enumerate(pictures):
            image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
            how = Image.Resampling.NEAREST if max(picture.shape[:2]) < side else Image.Resampling.LANCZOS
            canvas.paste(image.resize((side, side), how), (LEFT + n * (side + GAP), top))
    return canvas


def one(model: Any, units: Sequence[str], method: str, data: str | None = None, **options: Any) -> list[Any] | str:
    """A picture a unit, or why there is none; data: the pictures from which mean-image starts for units of a layer."""
    if data and method == "mean-image":
        options |= {"data": data, "survey": penlight.survey(model, data, layers=layer_of(units), top=EXAMPLES)}
    try:
        found = penlight.visualize(model, list(units), method=method, **{**CHEAPER.get(method, {}), **options})
    except PenlightError as error:
        return str(error)
    return [found.images[u, 0] for u in range(len(units))]


def layer_of(units: Sequence[str]) -> str:
    return units[0].rpartition(":")[0]


def kept(folder: Path | None, model: Any, units: Sequence[str], method: str, data: str | None) -> list[Any] | str:
    """`one`, or what an earlier run kept of it; says how long it took."""
    file = folder and folder / f"{Path(model.reference).stem}-{layer_of(units)}-{method}-{len(units)}.npz"
    if file and file.exists():
        with np.load(file) as stored:
            return list(stored["pictures"])
    start = time.process_time()
    row = one(model, units, method, data)
    print(f"{units[0]} {method}: {time.process_time() - start:.0f} s", flush=True)
    if file and not isinstance(row, str):
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file.with_suffix(".new.npz"), pictures=np.stack(row))
        file.with_suffix(".new.npz").rename(file)
    return row


def letters(given: argparse.Namespace) -> None:
    """All classes of `letters`, a row a method."""
    model = penlight.load("letters")
    units = [f"class:{label}" for label in model.labels or ()]
    extra = {"maco": {"crops": 32, "size": 0}, "mean-image": {"facets": 1, "steps": 0}}
    rows = [(name, one(model, units, name, **extra.get(name, {}))) for name in names(given.methods)]
    save(grid(rows, list(model.labels or ()), SIDE), "letters.png")


def layers(given: argparse.Namespace) -> None:
    """The first units of some layers by the default method, or units from all over a layer, a row a method."""
    model = penlight.load(given.card)
    for layer in given.names:
        count = model.layer(layer).units
        if given.methods:
            chosen = np.unique(np.linspace(0, count - 1, min(given.units, count)).astype(int)).tolist()
            units = [f"{layer}:{n}" for n in chosen]
            rows = [(name, kept(given.keep, model, units, name, given.data)) for name in names(given.methods)]
            save(grid(rows, [str(n) for n in chosen], SIDE), f"{Path(given.card).stem}-{layer}-methods.jpg")
            continue
        units = [f"{layer}:{n}" for n in range(min(given.units, count))]
        found = penlight.visualize(model, units)
        half = (len(units) + 1) // 2
        halves = [(layer, found.images[:half, 0]), ("", found.images[half:, 0])]
        save(grid(halves, [str(n) for n in range(half)], 112), f"{Path(given.card).stem}-{layer}.jpg")


def classes(given: argparse.Namespace) -> None:
    """Some classes, a row a method."""
    model = penlight.load(given.card)
    rows = [(name, one(model, [f"class:{label}" for label in given.names], name)) for name in names(given.methods)]
    save(grid(rows, given.names, 112), f"{Path(given.card).stem}-classes.jpg")


TILE, TILES = 162, 6  # of the sheets of recognition.py with six classes: two rows of three


def sheets(given: argparse.Namespace) -> None:
    """The contact sheets of `recognition.py`, a row each."""
    paths = [Path(given.card) / f"{name}.png" for name in [*FIRST, "lucent", "penlight"]]
    rows = [(path.stem, tiles(path, TILES)) for path in paths if path.exists()]
    if not rows:
        raise FileNotFoundError(
            f"{given.card} holds no contact sheet of a method; recognition.py --classes 6 --out writes them"
        )
    save(grid(rows, [""] * TILES, TILE - 2), f"{given.names[0]}-methods.jpg")


def tiles(path: Path, count: int) -> list[Any]:
    """The first pictures of a contact sheet of `recognition.py`."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    wide = picture.shape[1] // TILE
    corners = [((n // wide) * TILE, (n % wide) * TILE) for n in range(count)]
    return [picture[t : t + TILE - 2, a : a + TILE - 2] for t, a in corners]


SHOWN, ACROSS, CAPTION = 28, 7, 20


def recognised(given: argparse.Namespace) -> None:
    """The default's first pictures on the contact sheet of `recognition.py`, in the order in which classes were drawn, with their names."""
    folder = Path(given.card)
    if not (folder / "classes.txt").exists():
        raise FileNotFoundError(f"{folder} holds no classes.txt; recognition.py --out writes it")
    labels = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()[:SHOWN]
    font = ImageFont.load_default(12)
    down = -(-len(labels) // ACROSS)
    canvas = Image.new("RGB", (ACROSS * TILE, down * (TILE + CAPTION)), "#faf8f2")
    draw = ImageDraw.Draw(canvas)
    for n, (label, picture) in enumerate(zip(labels, tiles(folder / "penlight.png", len(labels)), strict=True)):
        left, top = n % ACROSS * TILE, n // ACROSS * (TILE + CAPTION)
        canvas.paste(Image.fromarray(picture), (left, top))
        word = label.partition(",")[0]
        while draw.textlength(word, font=font) > TILE - 4:
            word = word[:-2].rstrip() + "…"
        draw.text((left + 2, top + TILE), word, font=font, fill="#3d372d")
    save(canvas, f"{given.names[0]}-recognised.jpg")


WHY = (
    "gradient", "smoothgrad", "integrated-gradients", "guided-backprop", "deconvnet", "grad-cam", "score-cam", "occlusion", "lime",
    "kernel-shap", "rise", "lrp",
)  # fmt: skip


def why(given: argparse.Namespace) -> None:
    """What the explanations say of some inputs: a row an input, a column a method.

    Inputs are files, data:N, or skimage:NAME, one of scikit-image's own pictures.
    """
    model = penlight.load(given.card)
    asked = given.methods.split(",") if given.methods else list(WHY)
    small = max(model.contract.size) < 64
    rows = []
    for name in given.names:
        found = list(penlight.explain(model, _input(name), method=asked))
        label = (found[0].target.label or found[0].target.unit).partition(",")[0]
        pictures = [shown(found[0].input), *(_why_picture(part) for part in found)]
        colour = [np.repeat(p, 3, axis=2) if p.shape[2] == 1 else p for p in pictures]
        rows.append((label, colour))
    save(
        grid(rows, ["input", *asked], 84 if small else 140), f"why-{Path(given.card).stem}.{'png' if small else 'jpg'}"
    )


def _input(name: str) -> Any:
    if not name.startswith("skimage:"):
        return name
    from skimage import data

    return Image.fromarray(getattr(data, name.partition(":")[2])())


def _why_picture(part: Any) -> Any:
    return part.painted() if part.colour and len(part.input) == 3 else part.overlay()


def save(image: Image.Image, name: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    image.save(OUT / name, quality=86)
    print(OUT / name, np.asarray(image).shape)


def main() -> None:
    """Write one part of the gallery."""
    parser = argparse.ArgumentParser(description="Make a part of the gallery.")
    parser.add_argument("part", choices=["letters", "layers", "classes", "sheets", "recognised", "why"])
    parser.add_argument("card", nargs="?", default="letters")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--methods", default="")
    parser.add_argument("--data", help="folder of pictures, for mean-image")
    parser.add_argument("--keep", type=Path, help="folder for finished rows")
    given = parser.parse_args()
    parts = {"letters": letters, "layers": layers, "classes": classes, "sheets": sheets, "recognised": recognised}
    try:
        {**parts, "why": why}[given.part](given)
    except (PenlightError, FileNotFoundError) as error:
        parser.exit(2, f"make_gallery.py: {error}\n")


if __name__ == "__main__":
    main()
