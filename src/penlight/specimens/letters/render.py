"""From a directory of fonts to a labelled set of glyph pictures, split by family.

The pictures are white glyphs on black, cropped to their ink and fitted into a square frame
with their proportions kept: the longer side touches the frame. They are rendered large and
reduced by area averaging, so every grey level is coverage.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFont

CLASSES = "ABCDEFGHIJ"
FRAME = 56  # side of the stored pictures; the network reads their 2x2 means, 28x28
SIDE = FRAME // 2
POINTS = 160  # size at which a glyph is drawn before it is reduced
SUFFIXES = frozenset({".ttf", ".otf", ".ttc", ".otc", ".pfb", ".pfa", ".t1"})
SAME_FACE = 0.995  # cosine above which two faces count as one drawn twice
SAME_DESIGN = 0.945  # cosine above which two faces must fall on one side of the split

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Words that tell members of one family apart; without them the rest of the name is the family.
STYLE_WORDS = frozenset(
    word
    for line in """
    bold italic oblique regular cal brk roman book medium normal plain light thin hairline heavy black
    extra semi demi ultra extrabold extralight semibold semilight demibold ultralight condensed cond
    narrow wide extended expanded semicondensed extracondensed slanted slant upright
    mono monospace monospaced sans serif slab display text caption caps smallcaps sc lf osf tf
    nf nerd font std pro web ui hinted unhinted cd it bd lt md bk rg slim fat solid
    outline hollow filled shadow inline rounded round alternate alternates alt std-book
    two ot otf ttf t1 lgc looped math new next neue compact office initials book-italic
    tosf lining oldstyle tlf oml omx swash typewriter proportional term code small big
    """.splitlines()
    for word in line.split()
)

# Scripts Noto and its kin append to a name although the Latin letters are the same.
SCRIPT_WORDS = frozenset(
    word
    for line in """
    arabic armenian bengali cherokee deva devanagari ethiopic georgian greek gujarati gurmukhi
    hebrew kannada khmer lao malayalam mongolian myanmar oriya sinhala syriac tamil telugu thaana
    thai tibetan cjk jp kr tc hk cyrillic latin
    """.splitlines()
    for word in line.split()
)

# Fonts that put pictures, ornaments or another script where A-J belong, told by their names;
# found by looking at the faces that a first network could not read.
NOT_LATIN = re.compile(
    r"dingba|dingbit|\bdings?\b|symbol|icon|emoji|ornament|ornement|pictogram|braille|barcode|chess|music"
    r"|runes|runic|futhark|tengwar|hieroglyph|cirth|klingon|semafor|semaphor|archaic|allrunes|cherokee|inuit|zaghawa"
    r"|pigpen|frimurer|starfont|karta|esstix|fourier-?orns|fell flowers|drmsym|d050000l|msam\d|wasy|stmary"
    r"|cm\w*ex\d|tex math|tamu_|grk|greek|ellhnikh|ams cyrillic|wncy|bbding|marvosym|manfnt|phaistos|linearb"
    r"|90 stars|binary 01s|bit blocks|entangled layer b|faux snow|head-ding|line dings|qbicle"
    r"|snailets|symmetry brk"
)


@dataclass
class Face:
    """One typeface: ten capitals and, where they differ, ten lower-case letters.

    glyphs: uint8 (10, 56, 56), A to J. lower: the same for a to j, or None.
    """

    family: str
    key: str
    kind: str
    glyphs: Bytes
    lower: Bytes | None
    package: str = ""


class Unusable(Exception):
    """What the user gave cannot be used, fonts above all; the message is one line for them."""


def find_fonts(roots: Iterable[Path]) -> list[Path]:
    """Every font file below the given directories, in a fixed order."""
    found = {p for root in roots for p in root.rglob("*") if p.suffix.lower() in SUFFIXES}
    return sorted(p for p in found if p.is_file())


def family_key(name: str) -> str:
    """A family name without its style, width, weight and script words: 'DejaVu Sans Mono' -> 'dejavu'."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W_]+", spaced.lower())
    words = [w.rstrip("0123456789") or w for w in words]
    kept = [w for w in words if w not in STYLE_WORDS and w not in SCRIPT_WORDS and not w.isdigit()]
    return "".join(kept) or "".join(words) or name


KINDS: tuple[tuple[str, str], ...] = (
    ("black letter", r"fraktur|goth(?!ic a1|am)|textura|schwab|black ?letter|yinit|ygoth|yfrak|yswab|rotunda"
     r"|gotic|suetterlin|oldania|dsfrak"),
    ("mono", r"mono|code|courier|typewriter|terminal|console|hack|inconsolata|proggy|cursor|term"),
    ("pixel", r"pixel|bitmap|dseg|8bit|atari|unscii|creep|misaki|dot"),
    ("script", r"script|hand|cursive|calli|chancer|brush|kaushan|dancing|lobster|kristi|comic|humor"
     r"|ecolier|pen"),
    ("slab", r"slab|egyp|rockwell|concrete|mekanus|bitter|arvo|clarendon"),
    ("serif", r"serif(?<!sans serif)|roman|times|garamond|bask|didot|bodoni|caslon|libertine|charter|palat"
     r"|century|gentium|charis|doulos|book|antiqua|tribun|minion|utopia|cochineal|schola|pagella|bonum|termes|vollkorn"),
    ("sans", r"sans|grot|helvet|arial|univers|heros|adventor|lato|roboto|inter|gillius|verana|gothic"
     r"|gillsans"),
)  # fmt: skip


def kind_of(name: str, path: str) -> str:
    """A coarse kind told by the names alone, "" where they tell nothing."""
    if re.search(r"aenigma|initials|dclfonts|engadget|f500|essays|aurical", path):
        return "display"
    text = f"{name} {Path(path).parent.name}".lower()
    return next((kind for kind, pattern in KINDS if re.search(pattern, text)), "")


def serif_or_sans(glyphs: Bytes) -> str:
    """'serif' where the I of uint8 (10, 56, 56) is much wider at its top than halfway down, else 'sans'."""
    widths = (glyphs[CLASSES.index("I")] > 127).sum(1)
    return "serif" if widths[:4].max() > 1.7 * max(1, int(np.median(widths[24:32]))) else "sans"


def tight_crop(ink: Bytes, side: int = FRAME, floor: int = 24) -> Bytes | None:
    """Crop uint8 (h, w) to its ink and fit it, proportions kept, into uint8 (side, side); None if blank."""
    rows = np.flatnonzero((ink > floor).any(1))
    cols = np.flatnonzero((ink > floor).any(0))
    if not len(rows) or not len(cols):
        return None
    crop = ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    scale = side / max(crop.shape)
    height, width = (max(1, round(n * scale)) for n in crop.shape)
    small = np.asarray(Image.fromarray(crop).resize((width, height), Image.Resampling.BOX))
    out = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    out[top : top + height, left : left + width] = small
    return out


def _ink(font: ImageFont.FreeTypeFont, char: str) -> Bytes:
    mask: Any = font.getmask(char, mode="L")
    width, height = mask.size
    if not width or not height:
        return np.zeros((1, 1), np.uint8)
    return np.asarray(Image.frombytes("L", (width, height), bytes(mask)))


def _letters(font: ImageFont.FreeTypeFont, chars: str, missing: set[bytes]) -> Bytes | None:
    """The ten letters as uint8 (10, 56, 56); None if one is blank, missing or the same as another."""
    inks = [_ink(font, c) for c in chars]
    crops = [tight_crop(i) for i in inks]
    if any(c is None or i.tobytes() in missing for c, i in zip(crops, inks, strict=True)):
        return None
    pictures = np.stack([c for c in crops if c is not None])
    return pictures if len({p.tobytes() for p in pictures}) == len(chars) else None


def render_face(path: Path, index: int = 0) -> Face | None:
    """Render one face of a font file; None where it cannot be read or lacks one of the ten capitals."""
    try:
        font = ImageFont.truetype(str(path), POINTS, index=index, layout_engine=ImageFont.Layout.BASIC)
        name, style = (n or "" for n in font.getname())
        missing = {_ink(font, c).tobytes() for c in "\ue0ff\uf8f0\u0378"}
        upper = _letters(font, CLASSES, missing)
        lower = _letters(font, CLASSES.lower(), missing) if upper is not None else None
    except (OSError, ValueError, MemoryError):
        return None
    if upper is None or NOT_LATIN.search(f"{name} {path.stem} {path.parent.name}".lower()):
        return None
    if lower is not None and float(np.mean(lower == upper)) > 0.98:
        lower = None
    family = (name or path.stem).strip()
    kind = kind_of(f"{family} {style}", str(path)) or serif_or_sans(upper)
    return Face(family, family_key(family), kind, upper, lower, path.parent.name)


def render_file(path: Path) -> list[Face]:
    """The usable faces of one font file, up to eight of a collection."""
    faces: list[Face] = []
    for index in range(8 if path.suffix.lower() in {".ttc", ".otc"} else 1):
        face = render_face(path, index)
        if face is None:
            break
        faces.append(face)
    return faces


def render_all(paths: Sequence[Path], workers: int = 1) -> list[Face]:
    """Every usable face of the files, in the order of the files."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return [face for faces in pool.map(render_file, paths, chunksize=32) for face in faces]


def signatures(glyphs: Sequence[Bytes]) -> Floats:
    """Unit vectors float32 (n, 1960) of n faces, each uint8 (10, 56, 56): their 14x14 means, centred."""
    stack = np.stack([g.reshape(len(g), 14, 4, 14, 4).mean((2, 4)) for g in glyphs]).astype(np.float32)
    flat = stack.reshape(len(stack), -1)
    flat -= flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), np.float32)


def distinct(faces: Sequence[Face], same: float = SAME_FACE) -> list[Face]:
    """The faces without those whose ten capitals an earlier face has already: by hash, then by cosine."""
    seen: set[str] = set()
    unique: list[Face] = []
    for face in faces:
        digest = hashlib.sha256(face.glyphs.tobytes()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            unique.append(face)
    if not unique:
        return []
    vectors = signatures([f.glyphs for f in unique])
    kept: list[int] = []
    basis = np.empty_like(vectors)
    for i, vector in enumerate(vectors):
        if not kept or float((basis[: len(kept)] @ vector).max()) < same:
            basis[len(kept)] = vector
            kept.append(i)
    return [unique[i] for i in kept]


def groups(faces: Sequence[Face], same: float = SAME_DESIGN) -> npt.NDArray[np.int64]:
    """A group number for each face: faces of one family, or of look-alike families, share it."""
    parent = list(range(len(faces)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    vectors = signatures([f.glyphs for f in faces])
    for i, face in enumerate(faces):
        parent[root(i)] = root(first.setdefault(face.key, i))
        for j in np.flatnonzero(vectors[:i] @ vectors[i] >= same):
            parent[root(i)] = root(int(j))
    roots = {r: n for n, r in enumerate(dict.fromkeys(root(i) for i in range(len(faces))))}
    return np.array([roots[root(i)] for i in range(len(faces))], np.int64)


def split(
    faces: Sequence[Face], share: float = 0.2, seed: int = 0, largest: int = 24
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Choose the unseen side: bool (n,) true for held-out faces, and the group of each face.

    Whole groups go to one side, about `share` of the groups of every kind; groups of more than
    `largest` faces (the common sans and serif designs and their clones) stay in training.
    """
    group = groups(faces)
    rng = np.random.default_rng(seed)
    unseen = np.zeros(len(faces), bool)
    by_kind: dict[str, list[int]] = {}
    for g in range(int(group.max()) + 1):
        members = np.flatnonzero(group == g)
        if len(members) <= largest:
            by_kind.setdefault(faces[members[0]].kind, []).append(g)
    for kind in sorted(by_kind):
        candidates = np.array(by_kind[kind])
        chosen = rng.permutation(candidates)[: round(share * len(candidates))]
        unseen |= np.isin(group, chosen)
    return unseen, group


def reduce_pictures(pictures: Bytes) -> Bytes:
    """uint8 (n, 56, 56) -> uint8 (n, 28, 28), each pixel the mean of 2x2."""
    n = len(pictures)
    means = pictures.reshape(n, SIDE, 2, SIDE, 2).astype(np.float32).mean((2, 4))
    return np.asarray(means + 0.5, np.uint8)


def collect(roots: Sequence[Path], workers: int = 1) -> list[Face]:
    """Find, render and deduplicate the faces below the directories; Unusable if there are none."""
    paths = find_fonts(roots)
    if not paths:
        where = ", ".join(str(r) for r in roots)
        raise Unusable(f"no font files found below {where}; install the packages in fonts.txt or give --fonts")
    faces = distinct(render_all(paths, workers))
    if len(faces) < 20:
        raise Unusable(f"only {len(faces)} usable faces found; install the packages in fonts.txt (--install)")
    return faces
