"""What is left in the images: detectors, metrics, the audit and its report.

This package looks at images and never loads a pipeline.
"""

from .answers import Answers, detect, take
from .audit import About, compare
from .detectors import DETECTORS, Box, Detection, Detector, Unscored, find_detector
from .images import Taken
from .metrics import METRICS, Metric, find_metric
from .page import render
from .report import Report, summary
from .statistics import Paired, Rate, Score
from .verdict import Limits

__all__ = [
    "DETECTORS",
    "METRICS",
    "About",
    "Answers",
    "Box",
    "Detection",
    "Detector",
    "Limits",
    "Metric",
    "Paired",
    "Rate",
    "Report",
    "Score",
    "Taken",
    "Unscored",
    "compare",
    "detect",
    "find_detector",
    "find_metric",
    "render",
    "summary",
    "take",
]
