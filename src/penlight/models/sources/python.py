"""`module:package.mod:callable`: a class or function in an importable module that makes the network."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import Tensor, nn

from penlight.errors import BadReference, UnknownName, Untrusted
from penlight.inputs import InputContract
from penlight.models.model import Model
from penlight.models.sources import Opened, Order


def open_module(order: Order) -> Opened:
    """Import, call, and take the module it returns.

    The callable returns a module, (module, example input) or a `Model`; a module may carry its example as `example_input_array`.
    When a card asks, it must be a Module class, or the user must say --trust: a function could be any function.
    """
    place, colon, name = order.name.partition(":")
    if not colon or not place or not name:
        raise BadReference(f"'module:{order.name}' has to be module:package.mod:callable")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or place
        raise BadReference(
            f"there is no Python module {missing!r}; install it, or run where it can be imported (PYTHONPATH)"
        ) from error
    except Exception as error:  # the user's module may raise anything
        raise BadReference(f"importing {place!r} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise UnknownName(
            f"name in {place}", name, [n for n in dir(module) if callable(getattr(module, n)) and not n.startswith("_")]
        )
    maker = getattr(module, name)
    if order.from_file and not (inspect.isclass(maker) and issubclass(maker, nn.Module)):
        raise Untrusted(
            f"the model card would call {place}.{name}, which is no Module class; say --trust if you know where the card is from"
        )
    return _opened(_call(maker, order, f"{place}.{name}"), f"{place}.{name}")


def _call(maker: Any, order: Order, text: str) -> Any:
    if isinstance(maker, nn.Module):
        return maker
    try:
        return maker(**order.options)
    except Exception as error:  # the user's code may raise anything
        raise BadReference(f"{text}({', '.join(order.options)}) failed: {type(error).__name__}: {error}") from error


def _opened(made: Any, text: str) -> Opened:
    if isinstance(made, Model):
        return Opened(made.network, made.contract, made.labels)
    example = None
    if isinstance(made, tuple) and len(made) == 2:
        made, example = made
    if not isinstance(made, nn.Module):
        raise BadReference(f"{text} gave a {type(made).__name__}; it has to return a torch.nn.Module")
    if example is None:
        example = getattr(made, "example_input_array", None)
    if not isinstance(example, Tensor):
        return Opened(made)
    shape = tuple(example.shape[1:])
    return Opened(made, InputContract("image" if len(shape) == 3 else "array", shape))
