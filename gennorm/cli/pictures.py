"""Pictures: pixels in and out, and what a normalized number looks like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from gennorm.cli.files import cannot_read
from gennorm.errors import FileError

__all__ = ["FORMATS", "Picture", "levels_of_grey", "read_picture", "save_picture", "without_alpha"]

Array = npt.NDArray[Any]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
DEVIATIONS = 2.5  # from the mean to black and to white
TIMES = 2.0  # the root mean square, to white


@dataclass(frozen=True, slots=True)
class Picture:
    """The pixels of a picture.

    Attributes
    ----------
    pixels : ndarray
        Rows, columns and one or three colours.
    alpha : ndarray of uint8, or None
        Rows and columns.
    profile : bytes or None
        What the colours mean (ICC).
    """

    pixels: Array
    alpha: Array | None
    profile: bytes | None


def levels_of_grey(y: Array, method: str) -> Array:
    """What normalized numbers look like, as bytes from 0 (black) to 255 (white).

    With method "Standardize" the mean is the grey in the middle, black and white are 2.5 deviations away. With method
    "RMS" black is 0, and white twice the root mean square. What lies beyond is black or white, and NaN is black.

    Examples
    --------
    >>> import numpy as np
    >>> levels_of_grey(np.array([-3.0, -1.0, 0.0, 1.0, 3.0]), "Standardize")
    array([  0,  76, 128, 178, 255], dtype=uint8)
    >>> levels_of_grey(np.array([0.0, 1.0, 2.0]), "RMS")
    array([  0, 128, 255], dtype=uint8)
    """
    scale, black = (255 / TIMES, 0.0) if method == "RMS" else (127.5 / DEVIATIONS, 127.5)
    shown = np.clip(np.nan_to_num(np.asarray(y, np.float64) * scale + black, nan=0.0), 0, 255)
    return np.rint(shown).astype(np.uint8)


def read_picture(path: Path) -> Picture:
    """Read a picture, the right way up.

    Raises
    ------
    FileError
        It is missing, or no picture, or an incomplete one.
    """
    try:
        with Image.open(path, formats=sorted({*FORMATS.values()})) as image:
            found = ImageOps.exif_transpose(image)
            profile = found.info.get("icc_profile")
            if found.mode == "1":
                found = found.convert("L")
            elif found.mode not in {"L", "LA", "RGB", "RGBA", "I;16", "I"}:
                profile = None if found.mode == "CMYK" else profile  # it is a profile of inks
                found = found.convert("RGBA" if found.has_transparency_data else "RGB")
            pixels = np.asarray(found)
    except Image.DecompressionBombError as error:
        raise _not_a_picture(path, str(error)) from None
    except UnidentifiedImageError:
        raise _not_a_picture(path, "it is neither PNG nor JPEG") from None
    except OSError as error:
        if error.errno is not None:
            raise cannot_read(path, error) from None
        raise _not_a_picture(path, str(error)) from None
    except (SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for broken ones
        raise _not_a_picture(path, str(error)) from None
    alpha = None
    if found.mode in {"LA", "RGBA"}:
        pixels, alpha = pixels[..., :-1], pixels[..., -1]
    return Picture(pixels if pixels.ndim == 3 else pixels[..., None], alpha, profile)


def _not_a_picture(path: Path, why: str) -> FileError:
    msg = f"{path} is no picture that can be read: {why.rstrip('.')}\nwrite or copy the file again"
    return FileError(msg, code="F010")


def without_alpha(path: Path, source: Path) -> FileError:
    """What to raise for a picture with transparency and a format without."""
    msg = f"{source} has transparency, and a {path.suffix} file holds none\nwrite a .png file"
    return FileError(msg, code="F011")


def save_picture(path: Path, picture: Picture, suffix: str) -> None:
    """Write bytes as a picture, in the format of a suffix.

    Raises
    ------
    OSError
    """
    pixels = picture.pixels
    if picture.alpha is not None:
        pixels = np.concatenate([pixels, picture.alpha[..., None]], axis=-1)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    options: dict[str, Any] = {} if picture.profile is None else {"icc_profile": picture.profile}
    if FORMATS[suffix] == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    image.save(path, FORMATS[suffix], **options)
