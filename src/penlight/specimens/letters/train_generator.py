"""Train the generator that ships with `letters`, judge it on families it never saw, and write its weights.

    python -m penlight.specimens.letters.train_generator --out DIR

Only families on the training side of the network's own split are used. Beside the weights it writes
generator.png, a contact sheet to look at. `--weights FILE` judges weights that exist, without training.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import DATA, augment, render, train  # first: it sets how threads wait, before torch loads

# isort: split
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .generator import DESIGN, UNITS, Generator, deepest, encode, on_sphere, rectify, shallow
from .network import Letters

FILES = ("generator.safetensors", "generator.png")
SHARE, SPLIT_SEED = 0.16, 1  # the split the network was trained with
WARPED = 0.15  # share of a batch bent and fitted anew
NOISE = 0.4  # at first, most noise on a code to follow, in standard deviations, and on a design; then less
WILD = 6.0  # most noise on a code that only has to give a glyph
LATE = 300  # step at which the critic's word begins to count
ASCENT = 200  # iterations of DGN-AM
RATES = (8.0, 2.0, 0.4, 0.1)  # as published; where it suits this code; two thirds of its mean range; small
ITEMS = len(render.CLASSES)
Figures = dict[str, float | int]


class Critic(nn.Module):
    """Tells glyphs (N, 1, 28, 28) from drawn ones: logits (N, 1), above 0 for real."""

    def __init__(self) -> None:
        super().__init__()
        self.look1 = nn.Conv2d(1, 16, 5, stride=2, padding=2)
        self.look2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.look3 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.weigh = nn.Linear(64 * 16, 128)
        self.say = nn.Linear(128, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = rectify(self.look1((x * 2 - 1).contiguous(memory_format=torch.channels_last)))
        x = rectify(self.look3(rectify(self.look2(x))))
        word: Tensor = self.say(rectify(self.weigh(x.flatten(1))))
        return word.float()


def normalised(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] as the network takes them."""
    return ((pictures - train.MEAN) / train.STD).contiguous(memory_format=torch.channels_last)


def draw_batch(capitals: Tensor, weight: Tensor, size: int) -> Tensor:
    """Glyphs float (size, 1, 28, 28) in [0, 1] of uint8 (F, 10, 56, 56): faces by weight, letters evenly."""
    face = torch.multinomial(weight, size, replacement=True)
    x = capitals[face, torch.randint(ITEMS, (size,))].unsqueeze(1).float() / 255
    warped = int(WARPED * size)
    return torch.cat((augment.fit(augment.warp(x[:warped])), F.avg_pool2d(x[warped:], 2))).clamp(0, 1)


@torch.no_grad()
def set_range(generator: Generator, net: Letters, capitals: Tensor, weight: Tensor, batches: int) -> None:
    """Measure the codes of batches of 500 training glyphs: their mean, standard deviation and allowed range."""
    codes = torch.cat([encode(net, normalised(draw_batch(capitals, weight, 500))) for _ in range(batches)])
    generator.code_mean.copy_(codes.mean(0))
    generator.code_std.copy_(codes.std(0))
    generator.code_low.zero_()
    generator.code_high.copy_(generator.code_mean + 3 * generator.code_std)


def disturbed(generator: Generator, code: Tensor, most: float) -> Tensor:
    """Codes (N, 1152) with noise of up to `most` standard deviations of each unit, kept to the range."""
    strength = most * torch.rand(len(code), 1) * generator.code_std
    return (code + strength * torch.randn_like(code)).clamp(generator.code_low, generator.code_high)


def reconstruction(generator: Generator, net: Letters, x: Tensor, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Image and feature loss of glyphs (N, 1, 28, 28) drawn from their own codes, and all drawings (2N, ...).

    Codes and designs get `noise`, as in NOISE. The second half of the drawings have no glyph to follow: half of them are of
    codes disturbed beyond recognition, as an ascent meets them, half of designs drawn by chance.
    """
    with torch.no_grad():
        low = shallow(net, normalised(x))
        high = deepest(net, low)
        code = high.flatten(1).float()
        codes = torch.cat((disturbed(generator, code, noise), disturbed(generator, code[::2], WILD)))
    design = generator.design(codes)
    shift = noise * torch.rand(len(x), 1) * torch.randn(len(x), DESIGN)
    chance = torch.randn(len(x) // 2, DESIGN)
    drawn = generator.draw(on_sphere(torch.cat((design[: len(x)] + shift, design[len(x) :], chance))))
    own = drawn[: len(x)]
    low_own = shallow(net, normalised(own))
    high_own = deepest(net, low_own)
    said, said_own = net.fc(high.flatten(1)), net.fc(high_own.flatten(1))
    squares = ((own, x, 1.0), (low_own, low, 0.2), (high_own, high, 8.0), (said_own, said, 0.6))
    losses = [w * (a.float() - b.float()).square().flatten(1).sum(1).mean() for a, b, w in squares]
    return torch.stack(losses).sum(), drawn


def fit(capitals: Tensor, weight: Tensor, net: Letters, args: argparse.Namespace) -> Generator:
    """Train for `args.steps` batches; the generator with averaged weights."""
    generator, mean, critic = Generator(), Generator(), Critic()
    set_range(generator, net, capitals, weight, min(30, 1 + args.steps // 100))
    mean.load_state_dict(generator.state_dict())
    half = train.has_fast_bf16(torch.device("cpu"))
    hand = torch.optim.AdamW(generator.parameters(), lr=args.rate, betas=(0.5, 0.99))
    eye = torch.optim.AdamW(critic.parameters(), lr=args.rate, betas=(0.5, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(hand, args.rate, total_steps=args.steps, pct_start=0.1,
                                                   cycle_momentum=False)  # fmt: skip
    start = time.monotonic()
    for step in range(args.steps):
        x = draw_batch(capitals, weight, args.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, drawn = reconstruction(generator, net, x, NOISE * (1 - step / args.steps))
            fooled = F.softplus(-critic(drawn)).mean() if step >= LATE else torch.zeros(())
        hand.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + args.adversarial * fooled)
        nn.utils.clip_grad_norm_(generator.parameters(), 200.0)
        hand.step()
        schedule.step()
        told = teach(critic, eye, x, drawn.detach(), half)
        with torch.no_grad():
            for old, new in zip(mean.parameters(), generator.parameters(), strict=True):
                old.lerp_(new, 1 - min(0.998, (1 + step) / (10 + step)))
        if step % 250 == 0:
            losses = f"loss {loss.item():.1f} critic {told:.2f}"
            print(f"step {step}/{args.steps} {losses} {time.monotonic() - start:.0f} s", flush=True)
            if args.watch is not None:
                save_file(half_precision(mean), str(args.watch))
    return mean


def teach(critic: Critic, eye: torch.optim.Optimizer, real: Tensor, drawn: Tensor, half: bool) -> float:
    """One step of the critic on glyphs and drawings; its loss before the step, 1.39 where it only guesses."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = F.softplus(-critic(real)).mean() + F.softplus(critic(drawn)).mean()
    eye.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    eye.step()
    return float(loss.detach())


def half_precision(generator: Generator) -> dict[str, Tensor]:
    """The state dict as it ships."""
    return {name: value.half().contiguous() for name, value in generator.state_dict().items()}


def ascend(generator: Generator, net: Letters, classes: Tensor, rate: float, seed: int,
           steps: int = ASCENT) -> tuple[Tensor, Tensor]:  # fmt: skip
    """DGN-AM with its published constants but the rate, as a check: last pictures and their codes.

    Each iteration steps the picture by rate / mean |gradient|, carries that change back through the
    generator, steps the code by rate / mean |gradient|, shrinks it by 1 % and clips it to the range.
    """
    code = torch.randn(len(classes), UNITS, generator=torch.Generator().manual_seed(seed))
    for step in range(steps):
        now = rate + (1e-10 - rate) * step / steps
        code.requires_grad_()
        picture = generator(code)
        seen = picture.detach().requires_grad_()
        logit = net(normalised(seen)).gather(1, classes.unsqueeze(1)).sum()
        (up,) = torch.autograd.grad(logit, seen)
        change = up * (now / up.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12))
        (back,) = torch.autograd.grad(picture, code, change)
        code = code.detach() + back * (now / back.abs().mean(1, keepdim=True).clamp(min=1e-12))
        code = (code * 0.99).clamp(generator.code_low, generator.code_high)
    with torch.no_grad():
        return generator(code), code


def directions(pictures: Tensor) -> Tensor:
    """Unit vectors (N, 784) of pictures, centred: their products are correlations."""
    flat = pictures.flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def nearest(pictures: Tensor, classes: Tensor, known: Tensor) -> tuple[float, float]:
    """How a judge other than the network sees pictures: by the nearest of known glyphs (F, 10, 28, 28).

    Returns the share whose nearest glyph is of their class, and the mean correlation with the nearest of it.
    """
    products = directions(pictures) @ directions(known.flatten(0, 1).unsqueeze(1)).T
    best = products.view(len(pictures), -1, ITEMS).amax(1)
    right = (best.argmax(1) == classes).float().mean()
    return float(right), float(best.gather(1, classes.unsqueeze(1)).mean())


def likeness(pictures: Tensor, classes: Tensor) -> float:
    """Mean correlation of two pictures of one class, over the classes: low where they are of many designs."""
    means = []
    for label in range(ITEMS):
        unit = directions(pictures[classes == label])
        count = len(unit)
        means.append(float(((unit @ unit.T).sum() - count) / (count * (count - 1))))
    return sum(means) / ITEMS


@torch.no_grad()
def judge_reconstructions(generator: Generator, net: Letters, known: Tensor) -> tuple[Figures, Tensor]:
    """Figures on the shipped sample, and its first 40 glyphs each beside its reconstruction."""
    with np.load(DATA, allow_pickle=False) as data:
        glyphs = torch.from_numpy(data["images"]).float().unsqueeze(1) / 255
        labels = torch.from_numpy(data["labels"]).long()
    drawn = generator(encode(net, normalised(glyphs)))
    said, of_drawn = net(normalised(glyphs)).argmax(1), net(normalised(drawn)).argmax(1)
    figures: Figures = {
        "sample_accuracy": float((said == labels).float().mean()),
        "reconstruction_accuracy": float((of_drawn == labels).float().mean()),
        "reconstruction_same_answer": float((of_drawn == said).float().mean()),
        "reconstruction_correlation": float((directions(glyphs) * directions(drawn)).sum(1).mean()),
        "reconstruction_rms": float((glyphs - drawn).square().mean().sqrt()),
        "sample_likeness": likeness(glyphs, labels),
    }
    figures["sample_nearest_right"], figures["sample_nearest_correlation"] = nearest(glyphs, labels, known)
    return figures, torch.stack((glyphs[:40], drawn[:40]), 1).flatten(0, 1)


def judge_ascents(generator: Generator, net: Letters, known: Tensor, seeds: int) -> tuple[Figures, list[Tensor]]:
    """Figures of DGN-AM for every class at each of the rates, and the pictures, `seeds` of a class in a row."""
    figures: Figures = {}
    shown = []
    classes = torch.arange(ITEMS).repeat_interleave(seeds)
    for rate in RATES:
        pictures, code = ascend(generator, net, classes, rate, seed=0)
        with torch.no_grad():
            chance = net(normalised(pictures)).softmax(1)
        name = f"dgn_am_{rate:g}"
        figures[f"{name}_recognised"] = float((chance.argmax(1) == classes).float().mean())
        figures[f"{name}_probability"] = float(chance.gather(1, classes.unsqueeze(1)).mean())
        right, correlation = nearest(pictures, classes, known)
        figures[f"{name}_nearest_right"], figures[f"{name}_nearest_correlation"] = right, correlation
        figures[f"{name}_likeness"] = likeness(pictures, classes)
        figures[f"{name}_at_upper_end"] = float((code >= 0.98 * generator.code_high).float().mean())
        shown.append(pictures)
    return figures, shown


def sheet(blocks: Sequence[Tensor], columns: int) -> npt.NDArray[np.uint8]:
    """Pictures (N, 1, 28, 28) of every block in rows of `columns`, at twice their size, between grey lines."""
    rows = []
    for block in blocks:
        tiles = F.pad(block[:, 0], (1, 1, 1, 1), value=0.35)
        tiles = F.pad(tiles, (0, 0, 0, 0, 0, -len(tiles) % columns), value=0.35)
        rows.append(tiles.view(-1, columns, 30, 30).transpose(1, 2).reshape(-1, columns * 30))
        rows.append(torch.full((4, columns * 30), 0.35))
    picture = torch.cat(rows).repeat_interleave(2, 0).repeat_interleave(2, 1)
    return np.asarray((picture * 255 + 0.5).numpy(), np.uint8)


def load_network() -> Letters:
    """`letters` as it ships, frozen."""
    net = Letters()
    net.load_state_dict({k: v.float() for k, v in load_file(DATA.with_name(train.FILES[0])).items()})
    return net.eval().requires_grad_(False)


def training_faces(faces: Sequence[render.Face]) -> list[render.Face]:
    """The faces on the training side of the split, none of a family in the shipped sample or like one.

    With other versions of the font packages the split moves; the sample stays held out all the same.
    """
    hidden, group = render.split(faces, SHARE, SPLIT_SEED)
    with np.load(DATA, allow_pickle=False) as data:
        shipped = {render.family_key(str(name)) for name in data["family_names"]}
    kept_out = {int(g) for face, g in zip(faces, group, strict=True) if face.key in shipped}
    sides = zip(faces, hidden, group, strict=True)
    return [face for face, hide, g in sides if not hide and int(g) not in kept_out]


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m penlight.specimens.letters.train_generator", description=__doc__)
    parser.add_argument("--fonts", nargs="+", default=list(train.FONTS), metavar="DIR", help="directories of fonts")
    parser.add_argument("--out", default="generator-out", metavar="DIR", help="where to write")
    parser.add_argument("--steps", type=train.positive, default=4500)
    parser.add_argument("--batch", type=train.positive, default=64)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--adversarial", type=float, default=40.0, help="weight of the critic's word")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=train.positive, default=1)
    parser.add_argument("--watch", type=Path, metavar="FILE", help="keep the weights so far in FILE")
    parser.add_argument("--seeds", type=train.positive, default=8, help="ascents per class in the judging")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="judge these weights instead of training")
    return parser.parse_args(argv)


def obtain(args: argparse.Namespace, faces: Sequence[render.Face], net: Letters) -> dict[str, Tensor]:
    """The half-precision weights: those of `args.weights`, or newly trained."""
    if args.weights is not None:
        return load_file(args.weights)
    glyphs = train.as_glyphs(faces)
    trained = fit(glyphs.upper, glyphs.weight, net, args)
    return half_precision(trained)


def run(args: argparse.Namespace) -> None:
    """Everything from fonts to files and figures."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)  # fail before the training, not after
    faces = training_faces(render.collect([Path(d) for d in args.fonts], args.threads))
    if not faces:
        raise render.Unusable("every face found is of a held-out family; install the packages in fonts.txt")
    print(f"{len(faces)} training faces, {len({f.family for f in faces})} families", flush=True)
    net = load_network()
    state = obtain(args, faces, net)
    generator = Generator()
    generator.load_state_dict({name: value.float() for name, value in state.items()})
    generator.eval().requires_grad_(False)
    save_file(state, str(out / FILES[0]))
    known = torch.from_numpy(np.stack([render.reduce_pictures(f.glyphs) for f in faces])).float() / 255
    figures, drawn = judge_reconstructions(generator, net, known)
    ascents, pictures = judge_ascents(generator, net, known, args.seeds)
    figures["code_upper_end"] = float(generator.code_high.mean())
    figures["parameters"] = sum(p.numel() for p in generator.parameters())
    figures |= ascents
    Image.fromarray(sheet([drawn, *pictures], 2 * args.seeds)).save(out / FILES[1])
    for name, value in figures.items():
        print(f"{name} = {value if isinstance(value, int) else format(value, '.4f')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on a mistake the user can mend."""
    try:
        run(options(argv))
    except (render.Unusable, OSError) as error:
        sys.stderr.write(f"letters.train_generator: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
