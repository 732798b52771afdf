"""`health`: which units work, which do not, and which can go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penlight.errors import BadInput
from penlight.results.diagnose import MEAN, ZERO, DiagnoseResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.diagnose.examination import Examination
from penlight.techniques.diagnose.judging import Thresholds
from penlight.techniques.options import option


@dataclass(frozen=True)
class Health(Technique):
    """Verdicts on every unit, each flagged set taken away to see what is lost, and how many units are needed at all.

    One pass over the data for the verdicts, then passes over samples of it in which units are silenced. Without `request.layers` the
    convolutions and dense layers are judged, but for the class scores. Units are judged where the rest of the network sees them: after
    the BatchNorm and before and after the rectifier that follow. Results of `visualize` with several starts in `request.earlier` add
    the verdicts static and unstable. Correlations are over the data and sampled positions.
    """

    verb: ClassVar[str] = "diagnose"
    name: ClassVar[str] = "health"
    paper: ClassVar[str] = (
        "ablation: Morcos et al. 2018, arXiv:1803.06959; estimates: Molchanov et al. 2017, arXiv:1611.06440, Theis et al. 2018,"
        " arXiv:1801.05787; participation ratio: Gao et al. 2017, bioRxiv 214262; bootstrap: Efron 1979"
    )
    version: ClassVar[int] = 6
    reads_data: ClassVar[bool] = True

    rare: float = option(0.01, "nearly dead: fires on less than this share of the inputs", low=0.0, high=1.0)
    full: float = option(
        0.9,
        "saturated: at the rectifier's upper limit in at least this share of inputs and positions",
        low=0.0,
        high=1.0,
    )
    alike: float = option(
        0.99, "duplicate: correlation with another unit, or with a sum of a few, at least this", low=0.5, high=1.0
    )
    combine: int = option(3, "units a duplicate may be the sum of", low=1, high=3)
    unstable: float = option(
        0.2, "unstable, static: pictures of different starts are less alike than this", low=-1.0, high=1.0
    )
    positions: int = option(
        0,
        "positions of a map that shares and correlations are read at, drawn for each input; 0: what makes 2 samples a unit, 64 at most",
        low=0,
        high=4096,
    )
    drop: float = option(
        0.005,
        "accuracy that may be lost when units go, as a share; of the loss where there are no classes",
        low=0.0,
        high=1.0,
    )
    replace: str = option(ZERO, "what stands for a unit that goes: zero, or its mean", choices=(ZERO, MEAN))
    tested: int = option(2500, "inputs that removals are measured on, drawn from the data", low=2)
    tried: int = option(500, "inputs that single units are silenced on, at most", low=2)
    effort: float = option(
        1.0,
        "work on single units and on the search each, in 10^12 multiply-adds; what single units cost beyond it is estimated; 0: no limit",
        low=0.0,
    )
    draws: int = option(2000, "draws of the bootstrap", low=100, high=100000)
    batch: int = option(0, "inputs in one forward pass; 0: as many as keep maps in the cache", low=0, high=4096)

    def run(self, request: Request) -> DiagnoseResult:
        """`BadInput` without data, or if not one input can be read; `CannotRun` if a layer has not a row an input."""
        if request.data is None:
            raise BadInput("a diagnosis needs data: give a folder of pictures, an .npz file or a dataset")
        return Examination(self, request, request.data).result()

    @property
    def limits(self) -> Thresholds:
        """From where on a verdict holds."""
        return Thresholds(self.rare, self.full, self.alike, self.combine, self.unstable)
