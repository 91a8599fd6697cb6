"""`python -m tests.benchmarks.learning_curves RUN... [--plot FILE.svg]`: held-out accuracy by step of finished runs.

Prints a markdown table and a JSON line, and draws the curves that the README shows.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

from t2ir1_ray import config  # noqa: E402


def curve(run: Path) -> tuple[str, list[dict[str, float]]]:
    """(label, evaluation lines) of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return f"seed {config.load(str(run / 'config.yaml')).train.seed}", [x for x in lines if "heldout/accuracy" in x]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    curves = [curve(run) for run in options.runs]
    steps = sorted({line["step"] for _, lines in curves for line in lines})
    print("| run | " + " | ".join(f"step {step}" for step in steps) + " |")
    print("| --- |" + " --- |" * len(steps))
    for label, lines in curves:
        for key, name in (("heldout/accuracy", "T = 1"), ("heldout/accuracy_greedy", "greedy")):
            found = {line["step"]: f"{line[key]:.1%}" for line in lines}
            print(f"| {label}, {name} | " + " | ".join(found.get(step, "") for step in steps) + " |")
    result = {label: {line["step"]: line["heldout/accuracy"] for line in lines} for label, lines in curves}
    print(json.dumps(result))
    if options.plot:
        figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
        for label, lines in curves:
            axes.errorbar(
                [line["step"] for line in lines],
                [100 * line["heldout/accuracy"] for line in lines],
                [100 * line["heldout/accuracy_stderr"] for line in lines],
                marker="o",
                capsize=3,
                label=label,
            )
        axes.set(xlabel="optimisation step", ylabel="held-out exact accuracy, T = 1 (%)")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(options.plot)


if __name__ == "__main__":
    main()
