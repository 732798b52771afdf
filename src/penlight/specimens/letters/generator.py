"""The specimen's picture generator: from a code of the network's deepest features back to a glyph.

The code is what the last layer of `letters` reads, conv4 rectified, pooled and flattened, as fc6 is in
"Synthesizing the preferred inputs for neurons in neural networks via deep generator networks" (Nguyen
et al. 2016, arXiv:1605.09304). The generator inverts it, trained as in "Generating images with perceptual
similarity metrics based on deep networks" (Dosovitskiy and Brox 2016, arXiv:1602.02644), by
`python -m penlight.specimens.letters.train_generator`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from . import GENERATOR
from .network import Letters

UNITS = 128 * 3 * 3  # of the code
DESIGN = 48  # length of the design vector every code is first reduced to
SLOPE = 0.2  # of the leaky rectifiers


def rectify(x: Tensor) -> Tensor:
    """Leaky ReLU."""
    return F.leaky_relu(x, SLOPE)


class Generator(nn.Module):
    """Glyphs from codes, float (N, 1152) -> (N, 1, 28, 28) in [0, 1], white on black, before normalisation.

    A code is reduced to a design vector of 48 numbers whose mean square is made 1, and that is drawn. The
    network was trained with noise on the design and critics of random designs, so codes unlike any that a
    picture gives, which an ascent soon reaches, still land on designs that look like letters.

    `code_shape` is (1152,). Buffers of that shape: `code_low` and `code_high`, the range an ascent keeps to,
    0 to mean + 3 standard deviations over the training glyphs; `code_mean` and `code_std` themselves.
    """

    code_low: Tensor
    code_high: Tensor
    code_mean: Tensor
    code_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.code_shape: tuple[int, ...] = (UNITS,)
        for name, value in (("low", 0.0), ("high", 3.0), ("mean", 0.0), ("std", 1.0)):
            self.register_buffer(f"code_{name}", torch.full((UNITS,), value))
        self.reduce1 = nn.Linear(UNITS, 96)
        self.reduce2 = nn.Linear(96, DESIGN)
        self.spread = nn.Linear(DESIGN, 32 * 7 * 7)
        self.draw1 = nn.Conv2d(32, 32, 3, padding=1)
        self.draw2 = nn.Conv2d(32, 24, 3, padding=1)
        self.draw3 = nn.Conv2d(24, 16, 3, padding=1)
        self.draw4 = nn.Conv2d(16, 12, 3, padding=1)
        self.draw5 = nn.Conv2d(12, 1, 3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        return self.draw(self.design(code))

    def design(self, code: Tensor) -> Tensor:
        """The design vectors (N, 48) of codes (N, 1152)."""
        scaled = (code - self.code_mean) / (self.code_std + 0.05)  # 0.05: some units hardly ever fire
        return on_sphere(self.reduce2(rectify(self.reduce1(scaled))))

    def draw(self, design: Tensor) -> Tensor:
        """Glyphs (N, 1, 28, 28) in [0, 1] of design vectors (N, 48)."""
        x = rectify(self.spread(design)).view(-1, 32, 7, 7)
        x = rectify(self.draw1(x.contiguous(memory_format=torch.channels_last)))
        x = rectify(self.draw2(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        x = rectify(self.draw3(x))
        x = rectify(self.draw4(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return torch.sigmoid(self.draw5(x))


def on_sphere(x: Tensor) -> Tensor:
    """Vectors (N, D) scaled to a mean square of 1."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4)


def encode(net: Letters, x: Tensor) -> Tensor:
    """Codes (N, 1152) of pictures (N, 1, 28, 28), normalised as the network takes them."""
    return deepest(net, shallow(net, x)).flatten(1)


def shallow(net: Letters, x: Tensor) -> Tensor:
    """conv2 rectified and pooled, (N, 48, 7, 7)."""
    x = F.max_pool2d(F.relu(net.conv1(x)), 2)
    return F.max_pool2d(F.relu(net.conv2(x)), 2)


def deepest(net: Letters, x: Tensor) -> Tensor:
    """conv4 rectified and pooled, (N, 128, 3, 3), from `shallow`'s output."""
    return F.max_pool2d(F.relu(net.conv4(F.relu(net.conv3(x)))), 2)


def open_generator() -> Generator:
    """The generator with the weights that ship: in evaluation, float32, its parameters frozen.

    >>> open_generator()(torch.zeros(2, 1152)).shape
    torch.Size([2, 1, 28, 28])
    """
    generator = Generator()
    generator.load_state_dict({name: value.float() for name, value in load_file(GENERATOR).items()})
    return generator.eval().requires_grad_(False)
