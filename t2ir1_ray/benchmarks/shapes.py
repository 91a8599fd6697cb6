"""The shapes world: exact accuracy by the verifier, on the held-out prompts that come with the package."""

from collections.abc import Sequence
from pathlib import Path

from t2ir1_ray.benchmarks.base import Benchmark, Figure, Item, View, one_per_category
from t2ir1_ray.config import SHIPPED
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.prompts import read_prompts
from t2ir1_ray.shapes.prompts import parse_prompt
from t2ir1_ray.shapes.verify import image_follows_plan, verify_image, verify_plan


class Shapes(Benchmark):
    """Right or wrong, nothing between; with a plan also whether the plan is right and whether the image follows it."""

    name = "shapes"
    images_per_prompt = 1

    def read(self, path: Path | None) -> list[Item]:
        path = path or Path(str(SHIPPED / "prompts_heldout.jsonl"))
        rows = read_prompts(path, "--prompts").to_pylist()
        for row in rows:
            if parse_prompt(row["prompt"]) is None:
                raise UserError(f"--prompts: {path}: {row['prompt']!r:.80} is no prompt of the shapes world")
        return [Item(row["prompt_id"], row["prompt"], row["task_type"], index) for index, row in enumerate(rows)]

    def score(self, item: Item, view: View) -> dict[str, float | None]:
        scores: dict[str, float | None] = {"accuracy": float(verify_image(item.prompt, view.pixels))}
        if view.plan:
            scores["plan"] = float(verify_plan(item.prompt, view.plan))
            scores["follows"] = float(image_follows_plan(view.plan, view.pixels))
        return scores

    def figures(self, items: Sequence[Item]) -> list[Figure]:
        return [
            Figure("accuracy", "accuracy", None),
            Figure("plan is right", "plan", None),
            Figure("image follows plan", "follows", None),
            *one_per_category(items, "accuracy"),
        ]

    def image_path(self, item: Item, number: int, count: int) -> str:
        return f"{item.index:05d}_{number}.png"
