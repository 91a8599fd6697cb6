"""The report: `runs.py` reads run folders, `dumps.py` their samples, `curves.py` picks what to draw, `page.py` writes.

The page itself is `page.html`, `page.css` and the scripts beside it; plotly.js draws the curves. `lanes.py` and
`health.py` tell what the actors did and how the run is. `follower.py` finds what is new in a run that is still being
written, and `serving.py` hands it to the same page.
"""

from t2ir1_ray.report_page.follower import Follower
from t2ir1_ray.report_page.page import Page, build_page
from t2ir1_ray.report_page.runs import Run, read_run
from t2ir1_ray.report_page.serving import serve

__all__ = ["Follower", "Page", "Run", "build_page", "read_run", "serve"]
