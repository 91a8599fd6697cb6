"""Benchmarks: a file each, with the prompts' published layout and the published protocol as pure functions.

| name | prompts (`--prompts`) | judges (`--expert`) |
| --- | --- | --- |
| shapes | ships with the package | none: an exact verifier |
| geneval | `evaluation_metadata.jsonl` | detector, clip |
| t2i_compbench | folder of `*_val.txt`, or one of them | vqa, detector, clip |
| wise | folder of `*.json`, or one of them | a vision language model behind an OpenAI-compatible endpoint |
| understanding | yes/no questions in POPE's files, and `--images`; or made for the shapes world | none: the labels |

Images are kept in the published folder layouts, so that the official evaluators can be run on them as well.
"""

from t2ir1_ray.benchmarks.base import Benchmark
from t2ir1_ray.benchmarks.geneval import GenEval
from t2ir1_ray.benchmarks.shapes import Shapes
from t2ir1_ray.benchmarks.t2i_compbench import CompBench
from t2ir1_ray.benchmarks.wise import Wise

BENCHMARKS: dict[str, type[Benchmark]] = {
    "shapes": Shapes,
    "geneval": GenEval,
    "t2i_compbench": CompBench,
    "wise": Wise,
}
UNDERSTANDING = "understanding"
"""Draws nothing: the checkpoint is asked about images instead, see `understanding.py`."""
