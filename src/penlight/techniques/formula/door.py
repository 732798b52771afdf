"""From what a user asks to a formula: which method, at which input, of which outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from penlight.errors import BadOption
from penlight.inputs import Data, read_input
from penlight.models import Model
from penlight.results.formula import FormulaResult
from penlight.techniques.contract import Progress, Request, default_method, methods
from penlight.techniques.options import build
from penlight.units import Unit


def asked(
    model: Model,
    at: Any,
    unit: Sequence[str | Unit] | str | Unit | None,
    method: str | None,
    data: Data | None,
    seed: int,
    progress: Progress,
    options: Mapping[str, Any],
) -> FormulaResult:
    """The formula: by `method`, or `affine` where an input is given and the whole expression where none is."""
    name = method or ("affine" if at is not None else default_method("formula", model.contract.kind))
    technique = build(methods["formula"][name], options)
    if model.contract.kind not in technique.kinds:
        raise BadOption(
            f"a network on {model.contract.kind} has no formula: its inputs are symbols, not numbers; see penlight explain"
        )
    units = [] if unit is None else [unit] if isinstance(unit, str | Unit) else list(unit)
    given = None if at is None else read_input(at, model.contract, data)
    result = technique.run(Request(model, targets=units, data=data, seed=seed, input=given, progress=progress))
    assert isinstance(result, FormulaResult)
    if result.rule is None or not isinstance(at, str | Path):
        return result
    return replace(result, rule=replace(result.rule, source=str(at)))
