"""Render the fonts, train the specimen `letters`, and write its weights, sample and card.

    python -m penlight.specimens.letters.train --out DIR

Everything that shipped came out of this command with its default options.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Set before torch loads: threads that wait by spinning bring a busy machine to a crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

try:
    import numpy as np
    import numpy.typing as npt
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file
    from torch import Tensor, nn

    from . import augment, render
    from .network import Letters
except ModuleNotFoundError as error:  # a clear line instead of a traceback for a bare install
    sys.stderr.write(f"letters.train: the Python package {error.name!r} is missing; install it\n")
    raise SystemExit(2) from None

MEAN, STD = 0.4, 0.43  # of the tight-cropped glyphs, rounded; also on the card
FONTS = ("/usr/share/fonts", "/usr/share/texmf", "/usr/share/texlive/texmf-dist/fonts")
PER_CLASS = 250
LOWER_SHARE = 0.05
FILES = ("letters.safetensors", "sample.npz", "letters.toml")
Figures = dict[str, float | int]
HEADLINES = (
    "accuracy_unseen_families",
    "unseen_families",
    "accuracy_unseen_display",
    "training_families",
)  # shown first


@dataclass
class Glyphs:
    """Faces as tensors: upper and lower uint8 (F, 10, 56, 56), has_lower bool (F,), weight float (F,)."""

    upper: Tensor
    lower: Tensor
    has_lower: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Glyphs:
        return Glyphs(*(t.to(device) for t in (self.upper, self.lower, self.has_lower, self.weight)))

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Draw faces by weight and letters evenly: uint8 (size, 56, 56) and int64 (size,)."""
        face = torch.multinomial(self.weight, size, replacement=True)
        label = torch.randint(len(render.CLASSES), (size,), device=face.device)
        small = (torch.rand(size, device=face.device) < LOWER_SHARE) & self.has_lower[face]
        pictures = torch.where(small.view(-1, 1, 1), self.lower[face, label], self.upper[face, label])
        return pictures, label


def as_glyphs(faces: Sequence[render.Face]) -> Glyphs:
    """Stack faces; one of a family of n weighs n**-0.5, so that large families do not drown the rest."""
    upper = torch.from_numpy(np.stack([f.glyphs for f in faces]))
    lower = torch.from_numpy(np.stack([f.glyphs if f.lower is None else f.lower for f in faces]))
    has_lower = torch.tensor([f.lower is not None for f in faces])
    _, inverse, counts = np.unique([f.key for f in faces], return_inverse=True, return_counts=True)
    weight = torch.from_numpy(counts[inverse].astype(np.float32) ** -0.5)
    return Glyphs(upper, lower, has_lower, weight)


class Trainee(nn.Module):
    """Letters with batch normalisation after every convolution and dropout before the last layer.

    The first filters are 7x7 weights seen through a 3x3 blur, which keeps them smooth; `net.conv1.weight`
    itself stays unused until `folded`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = Letters()
        self.first = nn.Parameter(torch.randn(16, 1, 7, 7) * 0.1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in self.convs())

    def convs(self) -> list[nn.Conv2d]:
        return [self.net.conv1, self.net.conv2, self.net.conv3, self.net.conv4]

    def on(self, device: torch.device) -> Trainee:
        """Moved to the device, the filters laid out channels last: several times faster on a CPU."""
        self.to(device)
        for conv in self.convs():
            conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
        return self

    def filters(self) -> Tensor:
        """The first filters, (16, 1, 5, 5)."""
        rows = self.first[..., :-2, :] + 2 * self.first[..., 1:-1, :] + self.first[..., 2:, :]
        return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 8

    def forward(self, x: Tensor) -> Tensor:
        for number, (conv, norm) in enumerate(zip(self.convs(), self.norms, strict=True)):
            x = conv(x) if number else F.conv2d(x, self.filters(), conv.bias, padding=2)
            x = F.relu(norm(x))
            if number != 2:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.net.fc(F.dropout(x.flatten(1), 0.25, self.training))
        return logits

    def roughness(self) -> Tensor:
        """How much neighbouring weights of the first filters differ, whatever the filters' scale."""
        w = self.filters()
        padded = F.pad(w, (1, 1, 1, 1))
        steps = padded.diff(dim=2).square().sum((1, 2, 3)) + padded.diff(dim=3).square().sum((1, 2, 3))
        return (steps / w.square().sum((1, 2, 3)).clamp(min=1e-8)).mean()

    def overlap(self) -> Tensor:
        """Mean squared cosine between two of the first filters: low where they look for different things."""
        unit = F.normalize(self.filters().flatten(1), dim=1)
        cosines = (unit @ unit.T).float() - torch.eye(len(unit), device=unit.device)
        return cosines.square().sum() / (len(unit) * (len(unit) - 1))

    def folded(self) -> Letters:
        """The same function, in evaluation, with only convolutions and one linear layer."""
        state = {k: v.clone() for k, v in self.net.state_dict().items()} | {"conv1.weight": self.filters()}
        for number, norm in enumerate(self.norms, 1):
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            weight, bias = f"conv{number}.weight", f"conv{number}.bias"
            state[bias] = (state[bias] - norm.running_mean) * gain + norm.bias
            state[weight] = state[weight] * gain.view(-1, 1, 1, 1)
        net = Letters()
        net.load_state_dict({k: v.detach().cpu() for k, v in state.items()})
        return net.eval()


def has_fast_bf16(device: torch.device) -> bool:
    """Whether half-precision arithmetic is faster than full on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


@torch.no_grad()
def average_into(mean: Trainee, model: Trainee, step: int) -> None:
    """Exponential moving average of weights and statistics, short at first."""
    keep = min(0.999, (1 + step) / (10 + step))
    for old, new in zip(mean.state_dict().values(), model.state_dict().values(), strict=True):
        if old.dtype.is_floating_point:
            old.lerp_(new, 1 - keep)
        else:
            old.copy_(new)


def train(data: Glyphs, steps: int, batch: int, device: torch.device, watch: Path | None = None,
          peak: float = 3e-3) -> Letters:  # fmt: skip
    """Train for a number of steps on augmented glyphs; the averaged, folded network.

    watch: a file that gets the weights so far every 500 steps, for a look while it runs.
    """
    model, mean = Trainee().on(device), Trainee().on(device)
    mean.load_state_dict(model.state_dict())
    half = has_fast_bf16(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps, pct_start=0.1)
    start = time.monotonic()
    for step in range(steps):
        pictures, label = data.batch(batch)
        x = (augment.augment(pictures) - MEAN) / STD
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), label, label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + 0.01 * model.roughness() + 0.1 * model.overlap())
        optimiser.step()
        schedule.step()
        average_into(mean, model, step)
        if step % 200 == 0:
            print(f"step {step}/{steps} loss {loss.item():.3f} {time.monotonic() - start:.0f} s", flush=True)
        if watch is not None and step % 500 == 499:
            save_file(mean.folded().state_dict(), str(watch))
    mean.eval()
    return mean.folded()


def to_fp16(net: Letters) -> dict[str, Tensor]:
    """The state dict as it ships, and the network rounded to it in place."""
    state = {k: v.half().contiguous() for k, v in net.state_dict().items()}
    net.load_state_dict({k: v.float() for k, v in state.items()})
    return state


@torch.no_grad()
def predict(net: Letters, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Classes of uint8 (n, 28, 28)."""
    x = (torch.from_numpy(pictures).float().div(255).unsqueeze(1) - MEAN) / STD
    return np.concatenate([net(x[at : at + 1000]).argmax(1).numpy() for at in range(0, len(x), 1000)])


@torch.no_grad()
def quietest_channel(net: Letters, pictures: npt.NDArray[np.uint8]) -> float:
    """The least share of pictures on which any channel of any convolution fires at all."""
    x = (torch.from_numpy(pictures).float().div(255).unsqueeze(1) - MEAN) / STD
    lowest = 1.0
    for number, conv in enumerate((net.conv1, net.conv2, net.conv3, net.conv4), 1):
        x = F.relu(conv(x))
        lowest = min(lowest, float((x.amax((2, 3)) > 0).float().mean(0).min()))
        x = F.max_pool2d(x, 2) if number != 3 else x
    return lowest


def stretched(glyphs: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8 (n, 56, 56) -> (n, 28, 28) with the ink stretched to the whole frame."""
    x = torch.from_numpy(glyphs).unsqueeze(1).float() / 255
    centre, half = augment.ink_box(x)
    theta = torch.cat((torch.diag_embed(half), centre.unsqueeze(2)), 2)
    grid = F.affine_grid(theta, [len(x), 1, render.SIDE, render.SIDE], align_corners=False)
    out = F.grid_sample(x, grid, align_corners=False)[:, 0]
    return np.asarray((out * 255 + 0.5).numpy(), np.uint8)


def draw_sample(faces: Sequence[render.Face], seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Which face and which letter make the shipped sample; every ten in a row hold each class once."""
    rng = np.random.default_rng(seed)
    count = min(PER_CLASS, len(faces))
    columns = [rng.permutation(len(faces))[:count] for _ in render.CLASSES]
    order = [rng.permutation(len(render.CLASSES)) for _ in range(count)]
    face = [int(columns[c][i]) for i in range(count) for c in order[i]]
    return np.array(face, np.int64), np.concatenate(order).astype(np.uint8)


def measure(net: Letters, seen: Sequence[render.Face], unseen: Sequence[render.Face]) -> Figures:
    """The card's figures, all on glyphs of families that were not trained on, none augmented."""
    large = np.concatenate([f.glyphs for f in unseen])
    label = np.tile(np.arange(len(render.CLASSES)), len(unseen))
    pictures = render.reduce_pictures(large)
    right = predict(net, pictures) == label
    figures: Figures = {"accuracy_unseen_families": float(right.mean())}
    figures["accuracy_unseen_stretched_to_frame"] = float((predict(net, stretched(large)) == label).mean())
    kinds = np.repeat([f.kind for f in unseen], len(render.CLASSES))
    for kind, _ in Counter(kinds.tolist()).most_common():
        figures[f"accuracy_unseen_{kind.replace(' ', '_')}"] = float(right[kinds == kind].mean())
    for number, name in enumerate(render.CLASSES):
        figures[f"accuracy_unseen_{name}"] = float(right[label == number].mean())
    figures["unseen_families"] = len({f.family for f in unseen})
    figures["unseen_faces"], figures["unseen_glyphs"] = len(unseen), len(label)
    figures["training_families"] = len({f.family for f in seen})
    figures["training_faces"], figures["training_glyphs"] = len(seen), len(seen) * len(render.CLASSES)
    figures["parameters"] = sum(p.numel() for p in net.parameters())
    figures["multiply_adds"] = multiply_adds(net)
    figures["least_active_channel"] = quietest_channel(net, pictures)
    return figures


def multiply_adds(net: Letters) -> int:
    """Multiply-adds of one 28x28 picture."""
    sides = ((net.conv1, 28), (net.conv2, 14), (net.conv3, 7), (net.conv4, 7))
    return sum(c.weight.numel() * side * side for c, side in sides) + net.fc.weight.numel()


def card_text(figures: Figures) -> str:
    """The card as TOML."""
    labels = ", ".join(f'"{c}"' for c in render.CLASSES)
    head = (
        'source = "module:penlight.specimens.letters.network:Letters"\nweights = "letters.safetensors"\n'
        f'\n[input]\nkind = "image"\nshape = [1, 28, 28]\nlabels = [{labels}]\n'
        f"mean = [{MEAN}]\nstd = [{STD}]\ncrop = 1.0\n"
    )
    figures = {k: figures[k] for k in (*HEADLINES, *figures)}
    lines = (f"{k} = {v if isinstance(v, int) else format(v, '.4f')}\n" for k, v in figures.items())
    return head + "\n[figures]\n" + "".join(lines)


def write(out: Path, net: Letters, state: dict[str, Tensor], seen: Sequence[render.Face],
          unseen: Sequence[render.Face], seed: int) -> None:  # fmt: skip
    """Write weights, sample and card, and print every figure."""
    face, label = draw_sample(unseen, seed)
    images = render.reduce_pictures(np.stack([unseen[f].glyphs[c] for f, c in zip(face, label, strict=True)]))
    names, index = np.unique([unseen[f].family for f in face], return_inverse=True)
    figures = measure(net, seen, unseen)
    figures["sample_glyphs"] = len(label)
    figures["accuracy_sample"] = float((predict(net, images) == label).mean())
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, str(out / FILES[0]))
    families = index.astype(np.int16)
    np.savez_compressed(out / FILES[1], images=images, labels=label, families=families, family_names=names)
    (out / FILES[2]).write_text(card_text(figures))
    print(card_text(figures))
    print("training kinds, faces:", dict(Counter(f.kind for f in seen).most_common()))
    print("unseen kinds, faces:", dict(Counter(f.kind for f in unseen).most_common()))


def install() -> None:
    """apt-get the packages listed in fonts.txt."""
    names = Path(__file__).with_name("fonts.txt").read_text().split()
    try:
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *names], check=True)
    except FileNotFoundError:
        raise render.Unusable("--install needs apt-get (Debian); install the fonts by other means") from None
    except subprocess.CalledProcessError as error:
        raise render.Unusable(f"apt-get could not install the packages (exit {error.returncode})") from None


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m penlight.specimens.letters.train", description=__doc__)
    parser.add_argument("--fonts", nargs="+", default=list(FONTS), metavar="DIR", help="directories of fonts")
    parser.add_argument("--out", default="letters-out", metavar="DIR", help="where to write")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--steps", type=positive, default=9000)
    parser.add_argument("--batch", type=positive, default=512)
    parser.add_argument("--share", type=float, default=0.16, help="share of the families held out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--watch", type=Path, metavar="FILE", help="keep the weights so far in FILE")
    parser.add_argument("--install", action="store_true", help="apt-get the packages of fonts.txt first")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def open_device(name: str) -> torch.device:
    """The device by name, tried; auto is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError):
        raise render.Unusable(f"--device {name}: PyTorch cannot use it here") from None


def run(args: argparse.Namespace) -> None:
    """Everything from fonts to files."""
    if args.install:
        install()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = open_device(args.device)
    Path(args.out).mkdir(parents=True, exist_ok=True)  # fail before the training, not after
    faces = render.collect([Path(d) for d in args.fonts], args.threads)
    hidden, group = render.split(faces, args.share, args.seed)
    seen = [f for f, h in zip(faces, hidden, strict=True) if not h]
    unseen = [f for f, h in zip(faces, hidden, strict=True) if h]
    if not seen or not unseen:
        raise render.Unusable(f"{len(faces)} faces: --share {args.share} leaves one side empty")
    print(f"{len(faces)} faces in {group.max() + 1} groups, {len(unseen)} of them held out", flush=True)
    net = train(as_glyphs(seen).to(device), args.steps, args.batch, device, args.watch)
    write(Path(args.out), net, to_fp16(net), seen, unseen, args.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on a mistake the user can mend."""
    try:
        run(options(argv))
    except (render.Unusable, OSError) as error:
        sys.stderr.write(f"letters.train: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
