"""Train the specimen `code` on the standard library, and write its weights, sample and card.

    python -m penlight.specimens.code.train --out DIR

What ships was made with the default options, under the Python that corpus.txt names; another machine rounds differently.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# Set before torch loads: threads that wait by spinning bring a busy machine to a crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

try:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file
    from torch import Tensor, nn
except ModuleNotFoundError as error:  # a clear line instead of a traceback for a bare install
    sys.stderr.write(f"code.train: the Python package {error.name!r} is missing; install it\n")
    raise SystemExit(2) from None

from .corpus import File, Unusable, collect, library, listing, total
from .network import VOCABULARY, Code, State, encode

STEP = 192  # characters a step of training goes back through time
SAMPLE = 420_000  # characters of the sample that ships, about
SHORTEST, LONGEST = 1_500, 60_000  # characters of a file of the sample
FILES = ("code.safetensors", "sample.zip", "code.toml", "corpus.txt", "LICENSE-PSF.txt")
Figures = dict[str, float | int | str]


def streams(files: Sequence[File], count: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For ever: characters (count, STEP), the characters after them, and which streams (count, 1) begin anew."""
    encoded = [encode(file.text) for file in files]
    while True:
        order = torch.randperm(len(encoded), generator=generator).tolist()
        line = torch.cat([encoded[n] for n in order])
        shift = int(torch.randint(0, STEP, (1,), generator=generator))
        length = (len(line) - shift - 1) // count // STEP * STEP
        here = line[shift : shift + length * count].view(count, length)
        after = line[shift + 1 : shift + 1 + length * count].view(count, length)
        for start in range(0, length, STEP):
            anew = torch.rand(count, 1, generator=generator) < (0.03 if start else 1.0)
            yield here[:, start : start + STEP], after[:, start : start + STEP], anew


def has_fast_bf16(device: torch.device) -> bool:
    """Whether half-precision arithmetic is faster than full on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        return device.type == "cpu" and "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def rate(step: int, steps: int, peak: float) -> float:
    """Up in the first two hundredths, then down along a cosine to a fiftieth."""
    rise = max(1, steps // 50)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))


def apart(net: Code) -> list[nn.LSTM]:
    """The layers of the network's LSTM as modules of their own, which hold its weights, so that what the lower one puts out can be had."""
    whole = net.lstm
    layers = []
    for n in range(whole.num_layers):
        layer = nn.LSTM(whole.hidden_size if n else whole.input_size, whole.hidden_size, batch_first=True)
        for name, parameter in list(layer.named_parameters()):
            setattr(whole, f"{name[:-1]}{n}", parameter)
        layers.append(layer)
    return layers


def change(hidden: Tensor) -> Tensor:
    """How much hidden states (N, T, H) change from one character to the next, the mean magnitude."""
    return (hidden[:, 1:] - hidden[:, :-1]).float().abs().mean()


def train(files: Sequence[File], steps: int, batch: int, peak: float, device: torch.device, seed: int, still: float,
          dropout: float, watch: Path | None) -> Code:  # fmt: skip
    """The network after so many steps of truncated backpropagation through time.

    still: weight of a penalty on `change`, which rises from 0 over the first fifth of the steps: a cell that pays for every change keeps
    what holds for a while, and single cells become readable. watch: a file that gets the weights so far every 500 steps.
    """
    net = Code()
    layers = [layer.to(device) for layer in apart(net)]
    net.to(device)
    optimiser = torch.optim.AdamW(net.parameters(), peak, weight_decay=0.01)
    source = streams(files, batch, torch.Generator().manual_seed(seed))
    half, start, recent = has_fast_bf16(device), time.monotonic(), 0.0
    states: list[State | None] = [None] * len(layers)
    for step in range(steps):
        here, after, anew = (part.to(device) for part in next(source))
        states = [None if state is None else begin(state, anew) for state in states]
        changed = torch.zeros((), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            hidden = net.embedding(here)
            for n, layer in enumerate(layers):
                hidden, states[n] = layer(hidden, states[n])
                changed = changed + change(hidden)
                hidden = F.dropout(hidden, dropout)
            scores = net.head(hidden)
        loss = F.cross_entropy(scores.float().flatten(0, 1), after.flatten())
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + still * min(1.0, step / (steps * 0.2)) * changed)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, peak)
        optimiser.step()
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if step % 100 == 0:
            spent = time.monotonic() - start
            print(f"step {step}/{steps} {recent / math.log(2):.3f} bits a character, {spent:.0f} s", flush=True)
        if watch is not None and step % 500 == 499:
            save_file(net.state_dict(), str(watch))
    return net.cpu().eval()


def begin(state: State, anew: Tensor) -> State:
    """The state cut from its past, and zero for the streams that begin anew."""
    hidden, cell = (torch.where(anew, 0.0, part.detach().float()) for part in state)
    return hidden, cell


@torch.inference_mode()
def bits(net: Code, files: Sequence[File]) -> float:
    """Bits a character on files read from their beginning, each from the zero state; the first character is not counted."""
    lost, count = 0.0, 0
    for file in files:
        characters = encode(file.text).unsqueeze(0)
        scores, _ = net(characters[:, :-1])
        lost += float(F.cross_entropy(scores[0], characters[0, 1:], reduction="sum"))
        count += characters.shape[1] - 1
    return lost / count / math.log(2)


def to_fp16(net: Code) -> dict[str, Tensor]:
    """The state dict as it ships, and the network rounded to it in place."""
    state = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    net.load_state_dict({name: value.float() for name, value in state.items()})
    return state


def sample(files: Sequence[File]) -> list[File]:
    """Held-out files for the package, neither tiny nor huge: those with URLs, which are rare, then in the order of their digests."""
    chosen: list[File] = []
    for file in sorted(files, key=lambda file: ("://" not in file.text, file.digest)):
        fits = sum(len(f.text) for f in chosen) + len(file.text) <= SAMPLE
        if SHORTEST <= len(file.text) <= LONGEST and fits:
            chosen.append(file)
    return sorted(chosen, key=lambda file: file.path)


def card_text(figures: Figures) -> str:
    """The card as TOML."""
    vocabulary = "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or c in '"\\' or ord(c) > 126 else c for c in VOCABULARY)
    head = (
        'source = "module:penlight.specimens.code.network:Code"\nweights = "code.safetensors"\n'
        f'\n[input]\nkind = "text"\nvocabulary = "{vocabulary}"\nunknown = "\\ufffd"\nlength = 61\n'
    )
    lines = (f"{k} = {v}\n" if isinstance(v, int) else f'{k} = "{v}"\n' if isinstance(v, str) else f"{k} = {v:.4f}\n"
             for k, v in figures.items())  # fmt: skip
    return head + "\n[figures]\n" + "".join(lines)


def write(out: Path, net: Code, files: Sequence[File], licence: str) -> None:
    """Write weights, sample with its licence, listing and card, and print every figure."""
    held, seen = [f for f in files if f.held_out], [f for f in files if not f.held_out]
    shown, state = sample(held), to_fp16(net)
    figures: Figures = {
        "bits_per_character_held_out": bits(net, held),
        "bits_per_character_sample": bits(net, shown),
        "held_out_files": len(held),
        "held_out_characters": sum(len(f.text) for f in held),
        "training_files": len(seen),
        "training_characters": sum(len(f.text) for f in seen),
        "sample_files": len(shown),
        "sample_characters": sum(len(f.text) for f in shown),
        "parameters": sum(p.numel() for p in net.parameters()),
        "corpus": f"CPython {platform.python_version()}",
        "corpus_sha256": total(files),
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, str(out / FILES[0]))
    with zipfile.ZipFile(out / FILES[1], "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in shown:
            archive.writestr(zipfile.ZipInfo(file.path, (2023, 12, 4, 0, 0, 0)), file.text, zipfile.ZIP_DEFLATED, 9)
    (out / FILES[2]).write_text(card_text(figures), encoding="utf-8")
    (out / FILES[3]).write_text(listing(files), encoding="utf-8")
    (out / FILES[4]).write_text(licence, encoding="utf-8")
    print(card_text(figures))


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m penlight.specimens.code.train", description=__doc__)
    parser.add_argument("--library", type=Path, default=library(), metavar="DIR", help="the standard library's folder")
    parser.add_argument("--out", type=Path, default=Path("code-out"), metavar="DIR", help="where to write")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate at its highest")
    parser.add_argument("--still", type=float, default=0.6, help="weight of the penalty on states that change")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of what a layer puts out that is dropped")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--watch", type=Path, metavar="FILE", help="keep the weights so far in FILE")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Everything from modules to files."""
    if min(args.steps, args.batch, args.threads) < 1:
        raise Unusable("--steps, --batch and --threads take whole numbers above 0")
    if args.still < 0 or not 0 <= args.dropout < 1:
        raise Unusable("--still takes a number of at least 0, --dropout one from 0 to below 1")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    try:
        device = torch.zeros(1, device=args.device).device
    except (RuntimeError, AssertionError):
        raise Unusable(f"--device {args.device}: PyTorch cannot use it here") from None
    args.out.mkdir(parents=True, exist_ok=True)  # fail before the training, not after
    files = collect(args.library)
    licence = (args.library / "LICENSE.txt").read_text("utf-8")  # of the sample; missing before the training, not after
    seen = [file for file in files if not file.held_out]
    print(f"{len(files)} files, {len(files) - len(seen)} of them held out; {total(files)}", flush=True)
    net = train(seen, args.steps, args.batch, args.rate, device, args.seed, args.still, args.dropout, args.watch)
    write(args.out, net, files, licence)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on a mistake the user can mend."""
    try:
        run(options(argv))
    except (Unusable, OSError) as error:
        sys.stderr.write(f"code.train: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
