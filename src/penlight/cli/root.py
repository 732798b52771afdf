"""The group of commands, each imported when it is called."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import click

from penlight import __version__
from penlight.errors import UnknownName

_COMMANDS = {
    "demo": ("demo", "Build and show the atlas of a small network that ships inside."),
    "layers": ("layers", "Every readable layer: kind, shape, units, receptive field."),
    "visualize": ("visualize", "What would excite this unit most, or least?"),
    "dream": ("dream", "More of whatever the network sees in a picture."),
    "activations": ("activations", "What does every unit do with this input?"),
    "explain": ("explain", "What in this input caused it?"),
    "survey": ("survey", "What in my data excites every unit?"),
    "diagnose": ("diagnose", "Which units work, which do not, and which can go?"),
    "formula": ("formula", "What does it compute, exactly?"),
    "atlas": ("atlas", "Ask all of it of every unit, and keep the answers."),
    "site": ("site", "Write an atlas as static HTML."),
    "methods": ("methods", "Every technique with its options and source."),
}


class Verbs(click.Group):
    """Imports a command's module only when the command is used: help and `site` come without torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"penlight.cli.{_COMMANDS[name][0]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise UnknownName("command", args[0], _COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def penlight() -> None:
    """Look inside a trained neural network.

    MODEL is a specimen (letters, code, biopsies), torchvision:NAME, timm:NAME, module:package.mod:callable, or a model card (.toml).
    """
    warnings.showwarning = _warn


def _warn(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    click.echo(f"penlight: {message}", err=True)
