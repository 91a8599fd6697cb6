"""Names of files from prompts: limits are in bytes."""

import os
from pathlib import Path

import pytest

from t2ir1_ray.benchmarks.base import Item
from t2ir1_ray.benchmarks.t2i_compbench import CompBench
from t2ir1_ray.records.filenames import MAX_BYTES, file_name

LONG = {
    "Chinese": "一个红色的圆形在蓝色的方块上面" * 10,
    "Arabic": "قرد أحمر فوق مكعب " * 20,
    "families": "👩‍👩‍👧‍👦" * 30,
    "letters": "a red circle " * 40,
    "accents": "é" * 300,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_text_is_a_name_that_the_system_takes(text: str, tmp_path: Path) -> None:
    ending = "_000012.png"
    names = {file_name(text + more, ending) for more in ("", "x", "y")}
    assert len(names) == 3  # texts that differ behind the cut
    for name in names:
        assert MAX_BYTES - 4 <= len(os.fsencode(name)) <= MAX_BYTES
        assert name.endswith(ending)
        assert text.startswith(name.rpartition("~")[0])  # cut between characters
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ("text", "name"), [("a cat", "a cat.png"), ("../../etc/a", "etc a.png"), (".a\\b\n", "a b .png"), ("é" * 99, None)]
)
def test_a_short_text_stays_and_is_one_visible_file(text: str, name: str | None) -> None:
    assert file_name(text, ".png") == name or file_name(text, ".png") == f"{text}.png"


@pytest.mark.parametrize("text", ["", "...", "/", "\0"])
def test_a_text_without_a_character_of_a_name_has_one(text: str) -> None:
    assert len(file_name(text, ".png")) > len(".png")
    assert not file_name(text, ".png").startswith(".")


@pytest.mark.parametrize("prompt", LONG.values(), ids=LONG)
def test_images_of_t2i_compbench_can_be_saved_and_differ(prompt: str, tmp_path: Path) -> None:
    bench = CompBench({})
    paths = [bench.image_path(Item("", prompt, "color", index, {}), k, 2) for index in (3, 1_000_000) for k in (0, 1)]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert len(list(tmp_path.glob("color/samples/*.png"))) == 4
