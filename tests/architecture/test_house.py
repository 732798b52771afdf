"""The shape of the house: who may import whom, what comes without torch, which names are public."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import penlight

ROOT = Path(penlight.__file__).parent
LEVELS = {
    "errors": -1,
    "units": 0,
    "registry": 0,
    "results": 1,
    "render": 2,
    "store": 2,
    "inputs": 2,
    "specimens": 2,
    "models": 3,
    "techniques": 4,
    "jobs": 5,
    "api": 6,
    "cli": 7,
    "web": 7,
}
OPTIONAL = {
    "torchvision",
    "timm",
    "captum",
    "keras",
    "onnx",
    "ray",
    "IPython",
    "playwright",
    "fontTools",
    "sklearn",
    "skimage",
    "threadpoolctl",
}
PUBLIC = [
    "Model", "PenlightError", "Unit", "UsageError", "activations", "build_atlas", "build_site", "diagnose", "dream",
    "explain", "formula", "load", "project", "survey", "sweep", "visualize",
]  # fmt: skip


def modules():
    return sorted(ROOT.rglob("*.py"))


def place(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] not in ("__init__", "__main__") else None


def imports(file, nested=True):
    """Full names a file imports; without `nested` only those at module level and outside TYPE_CHECKING."""
    tree = ast.parse(file.read_text("utf-8"))
    nodes = ast.walk(tree) if nested else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_stands_on_a_level():
    assert {p for f in modules() if (p := place(f))} <= set(LEVELS)


@pytest.mark.parametrize("file", modules(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_imports_go_down_only(file):
    own = place(file)
    if own is None:
        return
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != "penlight" or len(parts) < 2 or parts[1] not in LEVELS or parts[1] == own:
            continue
        below = LEVELS[parts[1]] < LEVELS[own]
        front_end = LEVELS[own] == 7 and parts[1] == "web"
        assert below or front_end, f"{file.name} (level {LEVELS[own]}) imports {name}"


def test_the_six_questions_do_not_import_one_another():
    for file in (ROOT / "techniques").rglob("*.py"):
        own = file.relative_to(ROOT / "techniques").parts[0]
        for name in imports(file):
            parts = name.split(".")
            if parts[:2] == ["penlight", "techniques"] and len(parts) > 2:
                assert parts[2] in (own, "contract", "options", "following") or own.endswith(".py"), (
                    f"{file} imports {name}"
                )


def test_optional_libraries_are_imported_inside_functions():
    for file in modules():
        top = {name.split(".")[0] for name in imports(file, nested=False)}
        assert not top & OPTIONAL, f"{file} imports {top & OPTIONAL} at module level"


def test_only_the_probe_touches_hooks_and_modes():
    words = ("register_forward", "register_full_backward", ".train(", ".eval()")
    for file in modules():
        if file.name == "probe.py" or "specimens" in file.parts:
            continue
        text = file.read_text("utf-8")
        for word in words:
            assert word not in text, f"{file} says {word}"


TORCH_FREE = [
    "penlight",
    "penlight.results",
    "penlight.render",
    "penlight.store",
    "penlight.web.site",
    "penlight.inputs",
    "penlight.cli",
]


@pytest.mark.parametrize("name", TORCH_FREE)
def test_comes_without_torch(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_that_the_test_above_can_fail():
    code = "import sys, penlight.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_importing_changes_nothing():
    code = (
        "import torch, warnings, random, numpy as np\n"
        "before = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), list(warnings.filters)\n"
        "import penlight.api, penlight.web.site\n"
        "after = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), list(warnings.filters)\n"
        "assert torch.equal(before[0], after[0]) and before[1:] == after[1:]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names():
    assert penlight.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(penlight, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = penlight.lod


def test_the_docs_name_every_method_and_command():
    from penlight.api import method_rows
    from penlight.cli.root import _COMMANDS

    root = ROOT.parents[1]
    text = "".join(file.read_text("utf-8") for file in [root / "README.md", *sorted((root / "docs").glob("*.md"))])
    for name in _COMMANDS:
        assert f"penlight {name}" in text, f"no document shows 'penlight {name}'"
    for row in method_rows():
        assert f"`{row['method']}`" in text, f"no document names the method {row['method']}"
