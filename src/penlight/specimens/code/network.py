"""The architecture of the specimen `code`; nothing here knows of Penlight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY = "\ufffd\t\n" + "".join(map(chr, range(32, 127)))
"""Character number i is VOCABULARY[i]; the first stands for every character that is not there."""

State = tuple[Tensor, Tensor]


class Code(nn.Module):
    """Two layers of LSTM over characters; at every character the scores of the next."""

    def __init__(self, hidden: int = 288, embedding: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, len(VOCABULARY))

    def forward(self, characters: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """int64 (N, T) → scores (N, T, V) of the character after each, and the state after the last, for going on."""
        hidden, state = self.lstm(self.embedding(characters), state)
        scores: Tensor = self.head(hidden)
        return scores, state


def encode(text: str) -> Tensor:
    """Numbers of the characters, int64 (T,)."""
    number = {character: i for i, character in enumerate(VOCABULARY)}
    return torch.tensor([number.get(character, 0) for character in text])
