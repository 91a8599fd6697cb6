"""Image files from elsewhere become what a person sees, or are refused."""

import io

import numpy as np
import pytest
from PIL import Image

from rewards.base import read_image
from rewards.images import FORMATS, SUFFIXES

RED, WHITE = [255, 0, 0], [255, 255, 255]
UPRIGHT = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [90, 90, 90], [255, 255, 255]]], np.uint8)
TURNS = {  # EXIF orientation -> how the stored picture comes from the upright one
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_as_their_camera_says(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](UPRIGHT)))
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(read_image(encoded(stored, kind, exif=exif, **options)), UPRIGHT)


RAMP = np.array([[0, 257, 32768, 65535]])
DEEP = {
    "16-bit PNG": encoded(Image.fromarray(RAMP.astype(np.uint16)), "PNG"),
    "16-bit TIFF": encoded(Image.fromarray(RAMP.astype(np.uint16)), "TIFF"),
    "16-bit TIFF of a Mac": encoded(Image.frombytes("I;16B", (4, 1), RAMP.astype(">u2").tobytes()), "TIFF"),
    "integers": encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "floats": encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "floats up to 255": encoded(Image.fromarray((RAMP / 257).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("data", DEEP.values(), ids=DEEP)
def test_deep_samples_are_scaled_and_not_clipped(data: bytes) -> None:
    assert read_image(data)[0, :, 0].tolist() == [0, 1, 128, 255]


def palette(colours: list[int]) -> Image.Image:
    image = Image.new("P", (2, 2), 0)
    image.putpalette(colours)
    return image


SEEN = {
    "alpha": (encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG"), WHITE),
    "half alpha": (encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 51)), "PNG"), [255, 204, 204]),
    "alpha of WebP": (encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "WEBP", lossless=True), WHITE),
    "grey with alpha": (encoded(Image.new("LA", (2, 2), (0, 0)), "PNG"), WHITE),
    "a palette": (encoded(palette(RED * 2), "PNG"), RED),
    "a palette with a hole": (encoded(palette(RED * 2), "PNG", transparency=0), WHITE),
    "a palette with alphas": (encoded(palette(RED * 2), "PNG", transparency=b"\x33\xff"), [255, 204, 204]),
    "GIF with a hole": (encoded(palette(RED * 2), "GIF", transparency=0), WHITE),
    "a colour that means nothing": (encoded(Image.new("RGB", (2, 2), (0, 9, 0)), "PNG", transparency=(0, 9, 0)), WHITE),
    "CMYK TIFF": (encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"), RED),
    "one bit": (encoded(Image.new("1", (2, 2), 1), "BMP"), WHITE),
}


@pytest.mark.parametrize(("data", "colour"), SEEN.values(), ids=SEEN)
def test_a_picture_is_flattened_as_a_person_sees_it(data: bytes, colour: list[int]) -> None:
    image = read_image(data)
    assert (image.shape, image.dtype) == ((2, 2, 3), np.uint8)
    assert image[0, 0].tolist() == colour


def test_cmyk_of_a_camera_is_not_inverted() -> None:
    jpeg = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    np.testing.assert_allclose(read_image(jpeg)[8, 8], RED, atol=8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="an animation of 3 frames"):
        read_image(data)
    alone = encoded(frames[0], kind)
    np.testing.assert_allclose(read_image(alone)[4, 4], RED, atol=8)


def test_the_first_picture_of_a_camera_is_the_photograph() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert read_image(data).shape == (8, 8, 3)


BAD = {
    "a bomb": encoded(Image.new("1", (10_000, 9_000)), "PNG"),
    "negative integers": encoded(Image.fromarray(np.array([[-1, 5]], np.int32)), "TIFF"),
    "not a number": encoded(Image.fromarray(np.array([[np.nan, 0.5]], np.float32)), "TIFF"),
    "beyond any range": encoded(Image.fromarray(np.array([[1e6, 0.5]], np.float32)), "TIFF"),
    "another format": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("error")
def test_what_is_no_picture_is_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable image file") as error:
        read_image(data)
    assert "\n" not in str(error.value)


def test_every_format_has_endings_and_a_decoder() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert all(Image.EXTENSION[suffix] in FORMATS for suffix in SUFFIXES)
