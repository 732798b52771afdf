"""What the documents show works."""

import re
import shlex
from pathlib import Path

import click
import pytest

from penlight.cli.root import penlight as root

HOME = Path(__file__).parents[2]
DOCUMENTS = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
LINES = [
    (file.name, line.split("#")[0].strip())
    for file in DOCUMENTS
    for line in file.read_text("utf-8").splitlines()
    if line.startswith("    penlight ")
]


def test_the_session_of_the_readme_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (HOME / "README.md").read_text("utf-8"), re.S)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["happy"].images.shape == (1, 4, 28, 28, 1)
    assert names["happy"].activations.min() > 5


def test_the_method_of_ones_own_in_the_docs_runs():
    import numpy as np

    from penlight.techniques.contract import methods

    blocks = re.findall(r"```python\n(.*?)```", (HOME / "docs" / "explain.md").read_text("utf-8"), re.S)
    (block,) = [text for text in blocks if "class Away" in text]
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(block, "explain.md", "exec", dont_inherit=True), names)
    methods["explain"].add("away", names["Away"])
    try:
        import penlight

        found = penlight.explain("letters", "data:3", method="away", fill="blur", check=True)
    finally:
        methods["explain"].remove("away")
    assert found.values.shape == (28, 28)
    assert np.ptp(found.values, axis=1).max() == 0
    assert found.values.std() > 0
    assert found.checks["deletion"] is not None


@pytest.mark.parametrize(("file", "line"), LINES)
def test_the_command_lines_are_understood(file, line):
    words = shlex.split(line)[1:]
    context = click.Context(root)
    _, command, rest = root.resolve_command(context, words)
    command.make_context(command.name, list(rest))


def test_documents_show_command_lines_at_all():
    assert len(LINES) > 8


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda f: f.name)
def test_links_and_pictures_are_there(file):
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text("utf-8")):
        assert target.startswith("http") or (file.parent / target).exists(), f"{file.name}: {target}"
