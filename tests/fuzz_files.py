"""What the fuzzer breaks of other people's files: texts, names made of texts, images; each has an oracle."""

import json
import random
from pathlib import Path

from tests.fuzz_breaking import Case, as_json, break_bytes, break_value


class Texts:
    """Files of prompts as tools write them (marks, line ends, tables, layouts), through `prompts.read_texts`.

    A file that is not broken must give the prompts that it was made of.
    """

    PIECES = (
        "a red",
        " ring",
        "一个红色的",
        "\u2028",
        "\x85",
        "\x1c",
        "\x0b",
        ",",
        "\t",
        '"',
        ";",
        "é",
        "👩‍👧",
        "\ufeff",
        "{",
        "'",
    )
    ENDS = ("\n", "\r\n", "\r")

    def __init__(self, scratch: Path):
        from t2ir1_ray.records.prompts import read_texts

        self.read = read_texts

    def make(self, rng: random.Random) -> Case:
        # What blanks and marks around a prompt become is up to the format: prompts begin and end with a letter.
        prompts = [
            f"x{''.join(rng.choices(self.PIECES, k=rng.choice((0, 1, 5, 40))))}y" for _ in range(rng.choice((1, 2, 6)))
        ]
        name = rng.choice(("p.txt", "p.csv", "p.tsv", "p.jsonl", "p.json"))
        data = (rng.choice(("", "\ufeff")) + self._written(rng, name, prompts)).encode()
        broken = rng.random() < 0.4
        return {name: break_bytes(rng, data) if broken else data, "made.json": as_json(None if broken else prompts)}

    def _written(self, rng: random.Random, name: str, prompts: list[str]) -> str:
        end, column = rng.choice(self.ENDS), rng.choice(("prompt", "Prompts", "Caption", " TEXT "))
        if name == "p.txt":
            return end.join([*prompts, ""])
        if name == "p.json" and rng.random() < 0.5:
            return json.dumps([{"tag": 1, column: prompt} for prompt in prompts], ensure_ascii=False, indent=1)
        if name.startswith("p.json"):
            return "".join(
                json.dumps({column: prompt}, ensure_ascii=False) + end * rng.choice((1, 2)) for prompt in prompts
            )
        delimiter = "," if name == "p.csv" else "\t"
        cells = ['"' + prompt.replace('"', '""') + '"' for prompt in prompts]
        rows = [delimiter.join(row) for row in (("id", column), *(("1", cell) for cell in cells))]
        return end.join([*rows, ""])

    def run(self, folder: Path) -> None:
        made = json.loads((folder / "made.json").read_bytes())
        (folder / "made.json").unlink()
        read = self.read(next(folder.iterdir()), "--prompts")
        assert made in (None, read), "not the prompts that the file was made of"


class Questions:
    """POPE's files through `pope.read_questions`, and the images that they name."""

    ROWS = [
        {"question_id": 1, "image": "cup.png", "text": "Is there a cup in the image?", "label": "yes"},
        {"question_id": 2, "image": "cup.png", "image_id": 8, "text": "Is there a dog in the image?", "label": "no"},
    ]  # fmt: skip

    def __init__(self, scratch: Path):
        from PIL import Image

        from t2ir1_ray.benchmarks import pope

        self.pope = pope
        Image.new("RGB", (24, 24)).save(scratch / "cup.png")
        self.cup = (scratch / "cup.png").read_bytes()

    def make(self, rng: random.Random) -> Case:
        rows = break_value(rng, self.ROWS)
        data = b"\n".join(map(as_json, rows if isinstance(rows, list) else [rows])) + b"\n"
        return {
            rng.choice(("coco_pope_random.json", "mine.jsonl")): break_bytes(rng, data) if rng.random() < 0.3 else data,
            "cup.png": break_bytes(rng, self.cup) if rng.random() < 0.2 else self.cup,
        }

    def run(self, folder: Path) -> None:
        (file,) = folder.glob("*.json*")
        found = self.pope.read_questions(file, folder)
        assert len({asked.prompt_id for asked in found}) == len(found) > 0
        assert all(asked.text.strip() and asked.source.resolve().is_relative_to(folder.resolve()) for asked in found)
        self.pope.check_images(found)


class Names:
    """Texts of any script and length as names of files: they must be files of one folder, and tell texts apart."""

    SCRIPTS = ("abc ", "一个红", "é", "👩‍👩‍👧‍👦", "/", "\\", ".", "\0", "\n", "_", "~", "\u202e", "مكعب")

    def __init__(self, scratch: Path):
        from t2ir1_ray.records.filenames import file_name

        self.name = file_name

    def make(self, rng: random.Random) -> Case:
        text = "".join(rng.choices(self.SCRIPTS, k=rng.choice((0, 1, 3, 30, 90, 300))))
        return {"text.json": as_json([text, rng.choice(("", ".png", "_000012.png"))])}

    def run(self, folder: Path) -> None:
        text, ending = json.loads((folder / "text.json").read_bytes())
        name, other = self.name(text, ending), self.name(f"{text}é", ending)
        assert name.endswith(ending)
        assert name != other or len(text) < 2
        (folder / "names").mkdir()
        (folder / "names" / name).touch()
        assert [file.name for file in (folder / "names").iterdir()] == [name]
        assert not name.startswith(".")


class Images:
    """Image files in all modes and formats, whole and broken, through the experts' door."""

    MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB")
    KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

    def __init__(self, scratch: Path):
        import io

        import numpy as np
        from PIL import Image

        from rewards.base import read_image

        self.read, self.array = read_image, np.ndarray
        self.files: list[bytes] = []
        for mode in self.MODES:
            for kind in self.KINDS:
                for orientation in (1, 6):
                    exif = Image.Exif()
                    exif[0x0112] = orientation
                    buffer = io.BytesIO()
                    try:
                        Image.new(mode, (5, 3)).save(buffer, kind, exif=exif)
                    except (OSError, KeyError, ValueError):  # a mode that the format has not
                        continue
                    self.files.append(buffer.getvalue())

    def make(self, rng: random.Random) -> Case:
        data = rng.choice(self.files)
        return {"image": break_bytes(rng, data) if rng.random() < 0.8 else data}

    def run(self, folder: Path) -> None:
        from t2ir1_ray.errors import UserError

        try:
            image = self.read((folder / "image").read_bytes())
        except ValueError as error:  # which makes one sample fail
            raise UserError(str(error)) from None
        assert isinstance(image, self.array)
        assert (image.dtype, image.shape[2]) == ("uint8", 3)
