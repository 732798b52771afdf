"""`penlight methods`."""

from __future__ import annotations

import json
from typing import Any

import click

from penlight.render import columns


@click.command("methods")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON on stdout.")
def command(as_json: bool) -> None:
    """List every technique with its options, their defaults, and its source."""
    from penlight.api import method_rows

    rows = method_rows()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo("\n\n".join(_text(row) for row in rows))


def _text(row: dict[str, Any]) -> str:
    head = [f"{row['verb']} --method {row['method']}", f"  {row['summary']}", f"  {row['paper']}"]
    options = [
        {"flag": "    --" + option["name"].replace("_", "-"), "default": str(option["default"]), "help": option["help"]}
        for option in row["options"]
    ]
    if options:
        head.append(columns(options, {"flag": "    option", "default": "default", "help": "what it does"}))
    return "\n".join(head)
