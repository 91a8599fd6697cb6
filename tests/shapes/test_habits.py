"""The base's habits: they go by words alone, never satisfy the prompt, and leave everything else as it was."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ir1_ray.shapes.prompts import TASK_TYPES, is_held_out, parse_prompt, sample_requirement, sample_scene
from t2ir1_ray.shapes.recipes.habits import DRAWING, PLANNING, SHARE, drawing_habit, habit_of, plan_habit
from t2ir1_ray.shapes.recipes.train_policy import usual
from t2ir1_ray.shapes.world import Scene, parse_plan, write_plan

SEEDS = st.integers(0, 2**32 - 1)
TASKS = st.sampled_from(TASK_TYPES)
SAID = {
    "turned": "a red ring above a blue cross",
    "too few": "three cyan squares and a red ring",
    "same color": "a green cross and a yellow cross",
    "same texture": "a striped red ring and a dotted blue circle",
    None: "a blue ring above a red cross",
}


@given(SEEDS, TASKS)
def test_a_habit_of_planning_is_never_right_and_goes_by_the_prompt_alone(seed: int, task: str) -> None:
    rng = random.Random(seed)
    requirement = sample_requirement(rng, task)
    found = [plan_habit(requirement, sample_scene(requirement, rng)) for _ in range(3)]
    assert {habit and habit[0] for habit in found} == {habit_of(requirement)}
    for habit in filter(None, found):
        assert not requirement.satisfied_by(habit[1])
        assert parse_plan(write_plan(habit[1])) == habit[1]  # one object per cell


@given(SEEDS, TASKS)
def test_a_habit_of_drawing_keeps_places_and_what_it_is_not_about(seed: int, task: str) -> None:
    rng = random.Random(seed)
    planned = sample_scene(sample_requirement(rng, task), rng)
    name, drawn = drawing_habit(planned) or (None, planned)
    changed = [(before, after) for before, after in zip(planned, drawn, strict=True) if before != after]
    assert bool(changed) == bool(name)
    assert [item.cell for item in drawn] == [item.cell for item in planned]
    for before, after in changed:
        if name == "blue for purple":
            assert (before.color, before.shape, after.color) == ("purple", "ring", "blue")
        else:
            assert (before.texture, after.texture, before.color) == ("dotted", "striped", after.color)


@pytest.mark.parametrize(("habit", "prompt"), SAID.items())
def test_the_words_that_call_up_a_habit(habit: str | None, prompt: str) -> None:
    assert habit_of(parse_prompt(prompt)) == habit


def test_what_a_habit_makes_of_a_scene() -> None:
    def planned(prompt: str, right: str) -> str:
        return write_plan(plan_habit(parse_prompt(prompt), parse_plan(right))[1])

    assert planned(SAID["turned"], "red ring upper left, blue cross lower left.") == (
        "red ring lower left, blue cross upper left."
    )
    assert planned(
        SAID["too few"],
        "cyan square upper left, cyan square upper right, cyan square lower left, red ring middle center.",
    ) == ("cyan square upper left, cyan square upper right, red ring middle center.")
    assert planned(SAID["same color"], "green cross upper left, yellow cross lower left.") == (
        "green cross upper left, green cross lower left."
    )
    assert drawing_habit(parse_plan("purple ring upper left, purple cross lower left.")) == (
        "blue for purple",
        parse_plan("blue ring upper left, purple cross lower left."),
    )


def test_every_habit_is_met_on_both_sides_of_the_split_in_the_share_that_it_has() -> None:
    rng = random.Random(0)
    for held_out in (False, True):
        names: list[str | None] = []
        for index in range(1600):
            requirement = sample_requirement(rng, TASK_TYPES[index % len(TASK_TYPES)], held_out)
            assert is_held_out(requirement) == held_out
            scene = sample_scene(requirement, rng)
            names += [habit[0] for habit in (plan_habit(requirement, scene), drawing_habit(scene)) if habit]
        assert set(names) == PLANNING.keys() | DRAWING.keys()
        assert all(0.02 < names.count(name) / 1600 < 0.13 for name in set(names)), held_out


def test_lessons_have_a_habit_in_its_share_and_are_right_otherwise() -> None:
    rng = random.Random(0)
    scene: Scene = parse_plan("purple ring upper left.")
    made = [usual(scene, drawing_habit(scene), 0.5, rng) for _ in range(2000)]
    assert set(made) == {scene, parse_plan("blue ring upper left.")}
    assert made.count(scene) / 2000 == pytest.approx(1 - SHARE, abs=0.04)
    plain: Scene = parse_plan("blue ring upper left.")
    mistakes = [usual(plain, None, 0.5, rng) != plain for _ in range(2000)]
    assert sum(mistakes) / 2000 == pytest.approx(0.5, abs=0.05)
