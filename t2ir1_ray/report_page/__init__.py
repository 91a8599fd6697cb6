"""The report: `runs.py` reads run folders, `dumps.py` their samples, `curves.py` picks what to draw, `page.py` writes.

The page itself is `page.html`, `page.css` and the scripts beside it; plotly.js draws the curves.
"""

from t2ir1_ray.report_page.page import Page, build_page
from t2ir1_ray.report_page.runs import Run, read_run

__all__ = ["Page", "Run", "build_page", "read_run"]
