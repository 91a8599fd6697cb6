"""How long a step takes: the constants are the measured ones, phases agree with numbers computed by hand, and with what
was measured, and a larger model or step never takes less."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.fitting import step_time as st_
from t2ir1_ray.fitting.capacity import Node
from t2ir1_ray.fitting.memory import Shapes
from t2ir1_ray.fitting.published import published, published_parameters
from t2ir1_ray.fitting.speed import better_split, step_checks
from t2ir1_ray.fitting.step_time import CARDS, Card, call_rounds, card_named, step_time, tail_seconds

H200, H100 = CARDS[:2]
MEASURED = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "gpu_check_h200.json").read_text())
TRUNK = 30 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096


@pytest.fixture(scope="module")
def pro_7b() -> Shapes:
    return Shapes.of(published("deepseek-community/Janus-Pro-7B"))


def load(*overrides: str, name: str = "janus_pro_7b") -> Config:
    return configuration.load(name, list(overrides))


def figures(part: str, **where: object) -> list[dict]:
    found = MEASURED["parts"][part]["figures"]
    return [each for each in found if where.items() <= each.items()]


def parameters(config: Config) -> dict[str, int | None]:
    return {name: published_parameters(expert.path) for name, expert in config.experts.items()}


def test_constants_are_what_was_measured() -> None:
    rates = figures("card")[1]
    assert rates["bf16_matmul_TFLOP_per_s"] / H200.tflop_per_s == pytest.approx(st_.MATMUL, rel=0.01)
    assert rates["copy_GB_per_s"] / H200.gb_per_s == pytest.approx(st_.COPY, rel=0.01)
    learner = [each["share"] for each in figures("learner", what="forward and backward")]
    assert min(learner) - 0.01 < st_.LEARN < max(learner)
    steps = figures("variants", model="7B", rows=32, what="step", mode="graph")
    assert min(each["share"] for each in steps) < st_.TEXT < max(each["share"] for each in steps)
    (images,) = figures("decode", model="7B", loop="ours", images=64)
    assert images["share"] == pytest.approx(st_.IMAGE, rel=0.02)
    (pixels,) = figures("pixels", images=16, tf32=True)
    assert pixels["TFLOP_per_s"] / rates["bf16_matmul_TFLOP_per_s"] == pytest.approx(st_.PIXELS, rel=0.01)
    assert pixels["TFLOP_per_s"] * 1e12 / pixels["images_per_s"] == pytest.approx(st_.PIXELS_FLOP, rel=0.01)
    ways = {each["what"]: each["GB_per_s"] for each in figures("versions")}
    copies = ("device to host, pageable", "host to host", "host to device, pageable")
    digests = 2 / ways["digest on cuda, in chunks"]
    assert sum(1 / ways[way] for way in copies) + digests == pytest.approx(st_.STORE_S_PER_GB, rel=0.02)
    for (kind, dtype), rate in st_.IMAGES_PER_S.items():
        own = figures("experts", expert=kind)
        first = own[0]["dtype"] == dtype
        found = own[1] if first else next(each for each in own[2:] if each["dtype"] == dtype)
        assert rate == pytest.approx(found["images_per_s_batched"], rel=0.01), kind


@pytest.mark.parametrize(("model", "images"), [(m, i) for m in ("7B", "1B") for i in (16, 32, 64)])
def test_image_tokens_take_what_an_h200_took(model: str, images: int) -> None:
    """Single tokens were timed in the middle of an image; whole images took 1.4 times as long as these add up to."""
    config = load(f"rollout.prompts_per_call={images // 8}", "policy.max_plan_tokens=80")
    shapes = Shapes.of(published(f"deepseek-community/Janus-Pro-{model}"))
    measured = figures("decode", model=model, loop="ours", images=images)[0]
    estimated = st_.image_seconds(config, shapes, H200)
    assert 0.85 < estimated / (576 * measured["ms"] / 1000) < 1.5
    if (model, images) == ("7B", 16):
        assert estimated == pytest.approx(figures("decode", loop="ours, whole images")[0]["s"], rel=0.03)


def test_the_learner_by_hand(pro_7b: Shapes) -> None:
    """16 prompts x 8: 160 tokens of each prompt, 80 of each plan, 90 + 576 of each image."""
    rows = 16 * 8
    tokens = 16 * 160 + rows * 80 + rows * 666
    attention = 2 * 30 * 4096 * rows * 666**2
    heads = 2 * (rows * 80 * 102400 * 4096 + rows * 576 * (4096 * 4096 + 4096 * 16384))
    layers = 2 * TRUNK * tokens + attention
    rate = 0.6 * 0.78 * 989e12
    optimizer = 30 * (TRUNK + 2 * 102400 * 4096) / 4 / (0.87 * 4800e9)
    assert pro_7b.language == TRUNK + 2 * 102400 * 4096
    expected = (4 * layers + 3 * heads) / 4 / rate + optimizer
    assert st_.learn_seconds(load(), pro_7b, H200) == pytest.approx(expected, rel=1e-9)
    assert 2 < expected < 4
    assert st_.reference_seconds(load(), pro_7b, H200) == pytest.approx((layers + heads) / rate, rel=1e-9)
    shared = st_.reference_seconds(load("reference.replicas=2"), pro_7b, H200)
    assert shared == pytest.approx((layers + heads) / 2 / rate, rel=1e-9)
    lora = st_.learn_seconds(load("learner.lora_rank=8"), pro_7b, H200)
    assert lora == pytest.approx((3 * layers + 3 * heads) / 4 / rate, rel=0.01)


def test_plans_by_hand(pro_7b: Shapes) -> None:
    """32 plans of 4 prompts: 80 tokens, each reading the weights and 200 cached tokens of each in the mean."""
    read = 2 * (TRUNK + 102400 * 4096) + 2 * 2 * 4096 * 30 * 32 * 200
    expected = 80 * read / (0.5 * 0.87 * 4800e9) + 2 * TRUNK * 160 * 4 / (0.6 * 0.78 * 989e12)
    assert st_.text_seconds(load(), pro_7b, H200) == pytest.approx(expected, rel=1e-9)


def test_scores_come_behind_their_rounds() -> None:
    assert call_rounds(load("rollout.actors=3", "rollout.prompts_per_call=4")) == [12, 4]
    assert call_rounds(load("rollout.actors=2", "rollout.prompts_per_call=8")) == [16]
    assert tail_seconds(10, [3, 1], group=2) == pytest.approx(2)  # the first round's are done by 16
    assert tail_seconds(10, [3, 1], group=4) == pytest.approx(6)  # ... by 22, two after the second round's images
    assert tail_seconds(10, [4], group=0) == 0


def test_phases_add_up_and_the_longest_names_who_is_waited_for(pro_7b: Shapes) -> None:
    step = step_time(load(), pro_7b, H100)
    assert step.total == pytest.approx(step.rollout + step.score + step.learn + step.publish)
    assert step.slowest == "rollout"
    assert set(step.roles) == {"learner", "rollout", "reference", *(f"expert-{name}" for name in load().experts)}
    slow = step_time(load("rollout.actors=12", "experts.grounding_dino.num_gpus=1"), pro_7b, H100)
    assert slow.roles["expert-grounding_dino"] == pytest.approx(16 * 8 / 12.9)
    crowded = step_time(load("rollout.actors=4", "rollout.prompts_per_call=16", "train.steps=9"), pro_7b, H100)
    assert crowded.score > slow.score
    asynchronous = ("train.mode=async", "rollout.weight_transfer=object_store")
    ahead = step_time(load(*asynchronous), pro_7b, H100)
    assert (ahead.total, ahead.slowest) == (pytest.approx(ahead.rollout + ahead.publish), "rollout")
    serial = step_time(load(*asynchronous, "learner.zero_variance=resample"), pro_7b, H100)
    assert serial.total == pytest.approx(ahead.total + serial.score)
    scored = step_time(load(*asynchronous, "rollout.actors=16", "rollout.prompts_per_call=1"), pro_7b, H100)
    share = sum(seconds for name, seconds in scored.roles.items() if name not in ("learner", "rollout"))
    assert (scored.total, scored.slowest) == (pytest.approx(share), "expert-grounding_dino")
    own = step_time(load("experts.mine.kind=package.module.Class", "experts.mine.path=x"), pro_7b, H100)
    assert own.roles["expert-mine"] is None
    assert "reference" not in step_time(load("learner.beta=0"), pro_7b, H100).roles


SIZES = {"layers": 40, "hidden": 40, "intermediate": 40, "vocabulary": 1000, "codes": 1000, "image_tokens": 300}


def shapes_of(layers: int, hidden: int, intermediate: int, vocabulary: int, codes: int, image_tokens: int) -> Shapes:
    trunk = layers * (4 * hidden**2 + 3 * hidden * intermediate)
    return replace(
        Shapes(**dict.fromkeys((name for name in Shapes.__dataclass_fields__ if name != "adapted"), 1), adapted={}),
        language=trunk + 2 * vocabulary * hidden,
        generation=hidden * (hidden + codes),
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        keys=hidden,
        vocabulary=vocabulary,
        codes=codes,
        image_tokens=image_tokens,
        image_side=16,
        vq_channels=32,
    )


@given(
    st.fixed_dictionaries({name: st.integers(1, most) for name, most in SIZES.items()}),
    st.sampled_from([*SIZES, "prompts", "group"]),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_more_never_takes_less(sizes: dict[str, int], grown: str, prompts: int, group: int) -> None:
    def total(sizes: dict[str, int], prompts: int, group: int) -> float:
        config = BASE
        config.data.prompts_per_step, config.rollout.group_size = 4 * prompts, 2 * group
        return step_time(config, shapes_of(**sizes), H100).total

    before = total(sizes, prompts, group)
    larger = {name: size + (name == grown) * 7 for name, size in sizes.items()}
    after = total(larger, prompts + (grown == "prompts"), group + (grown == "group"))
    assert after >= before * (1 - 1e-9)
    assert math.isfinite(after)


BASE = load("learner.ranks=1", "rollout.actors=2", "rollout.prompts_per_call=2")


def test_cards_by_the_names_that_drivers_and_ray_give_them() -> None:
    assert card_named("NVIDIA H100 80GB HBM3") == H100
    assert card_named("A100-80G").name == "A100"
    assert card_named("NVIDIA GeForce RTX 3060") is None
    assert card_named("") is None


@pytest.mark.parametrize(("name", "gpus", "gpu_gb"), [("janus_pro_7b", 8, 85.5), ("janus_pro_1b", 4, 51.5)])
def test_the_recipes_are_as_good_a_split_as_any_that_fits(name: str, gpus: int, gpu_gb: float) -> None:
    config = load(name=name)
    shapes = Shapes.of(published(config.policy.path))
    assert better_split(config, shapes, parameters(config), H100, gpu_gb) is None
    step, (check,) = step_checks(config, shapes, parameters(config), [Node(96, gpus, ((gpu_gb, gpu_gb),) * gpus)])
    assert (check.level, f"about {step.total:.0f} s" in check.text) == ("ok", True)
    assert "for no GPU is seen here" in check.text


def test_a_better_split_is_one_that_fits_and_is_as_fast_as_it_says(pro_7b: Shapes) -> None:
    poor = load("rollout.actors=2", "rollout.prompts_per_call=2", "experts.orm.num_gpus=1")
    nodes = [Node(96, 8, ((85.5, 85.5),) * 8, card="NVIDIA H200")]
    split = better_split(poor, pro_7b, parameters(poor), H200, 85.5)
    applied = load("rollout.actors=2", "rollout.prompts_per_call=2", "experts.orm.num_gpus=1", *split.changes)
    assert step_time(applied, pro_7b, H200).total == pytest.approx(split.seconds)
    assert split.seconds < 0.9 * step_time(poor, pro_7b, H200).total
    _, (now, better) = step_checks(poor, pro_7b, parameters(poor), nodes)
    assert "(H200)" in now.text
    assert " ".join(split.changes) in better.text
    roomy = better_split(load(), pro_7b, parameters(load()), H200, 150)
    assert "rollout.prompts_per_call=8" in roomy.changes  # which takes over 100 GB


def test_what_runs_on_cpus_has_no_estimate() -> None:
    embedded = load(name="shapes")
    assert step_checks(embedded, Shapes.of(published("Janus-Pro-1B")), {}, []) == (None, [])


def test_a_faster_card_takes_less(pro_7b: Shapes) -> None:
    twice = Card("twice", 2 * H100.tflop_per_s, 2 * H100.gb_per_s, 80)
    assert step_time(load(), pro_7b, twice).total < step_time(load(), pro_7b, H100).total
