"""Results of a study or a run -> one HTML page; see `page`."""

from depthsys.report.html.page import page
from depthsys.report.html.results import STAGES, CellResults, Results
from depthsys.report.stage import Stage

__all__ = ["STAGES", "CellResults", "Results", "Stage", "page"]
