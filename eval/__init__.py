"""What is left in the images: detectors, metrics, the audit and its report.

This package looks at images and never loads a pipeline.
"""

from .audit import compare
from .detect import Scores, detect
from .detectors import DETECTORS, Detection, Detector, Unscored
from .metrics import METRICS, Metric
from .report import Limits, Report, render, summary
from .score import Paired, Rate, Score

__all__ = [
    "DETECTORS",
    "METRICS",
    "Detection",
    "Detector",
    "Limits",
    "Metric",
    "Paired",
    "Rate",
    "Report",
    "Score",
    "Scores",
    "Unscored",
    "compare",
    "detect",
    "render",
    "summary",
]
