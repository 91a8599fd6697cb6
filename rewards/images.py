"""The one door for image files: whatever comes in is turned, scaled and flattened to the 8-bit RGB that a person sees.

A photograph is turned as its camera says (EXIF); 16-bit, integer and float samples are scaled to 8 bits; what is
transparent lies on white. An animation has no one picture and is refused; of the several that a camera may store (MPO)
the first is the photograph. Embedded colour profiles are not applied: sRGB is assumed.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
"""Pillow's name -> endings. Pillow knows many more, some through programs that interpret the file."""
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
WHITE = (255, 255, 255)


def decode_image(data: bytes | bytearray | memoryview) -> np.ndarray:
    """An image file as (H, W, 3) uint8. Raises ValueError with one line if it cannot be read as one picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # a small file of a huge picture
            with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format != "MPO":
                    raise ValueError(f"an animation of {frames} frames: give one picture")
                return np.asarray(_flatten(_to_8_bits(ImageOps.exif_transpose(image))))
    except Exception as error:  # Pillow raises nearly every class for broken files
        raise ValueError(f"not a readable image file: {' '.join(str(error).split())[:200]}") from None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey samples of 16 or 32 bits in 8: Pillow's own conversion clips them at 255, so that nearly all are white.

    Integers are 0..65535, as files store them. Floats are 0..1, or 0..255 where one is above 1.
    """
    if image.mode.startswith("I"):
        highest = 65535
    elif image.mode == "F":
        highest = 1 if np.asarray(image).max() <= 1 else 255
    else:
        return image
    values = np.asarray(image).astype(np.float64)
    if not ((values >= 0) & (values <= highest)).all():  # also NaN
        raise ValueError(f"samples of mode {image.mode} must be in 0..{highest}: scale them")
    return Image.fromarray((values / highest * 255).round().astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """RGB, on white where the image is transparent: by alpha, by its palette, or by a colour that means nothing."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")
