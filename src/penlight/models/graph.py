"""Reading the graph that autograd records: what was done to a tensor, whatever wrote it down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

Node = Any  # torch.autograd.graph.Node: its saved values are attributes of the concrete class


def operation(node: Node) -> str:
    """'ReluBackward0' → 'Relu'."""
    return re.sub(r"Backward\d*\Z", "", node.name())


def nodes(root: Node | None, follow: Callable[[str], bool] = lambda name: True) -> Iterator[Node]:
    """Every operation of the graph below `root`, each once, going on below those whose names `follow` allows."""
    seen: set[Node] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if follow(operation(node)):
            waiting.extend(below for below, _ in node.next_functions)
