"""Reading and writing pictures, and the conversion of normalized numbers to pixels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from gennorm.cli.files import cannot_read, open_regular
from gennorm.errors import FileError

__all__ = ["FORMATS", "Picture", "levels_of_grey", "read_picture", "save_picture", "without_alpha"]

Array = npt.NDArray[Any]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
DEVIATIONS = 2.5  # from the mean to black and to white
TIMES = 2.0  # the root mean square, to white
# What Pillow multiplies grey values of fewer than 8 bits by, so that they are 0 to 255. It does not multiply the
# transparent colour.
EXPANDED = {"L;2": 85, "L;4": 17}


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
        The colour profile (ICC).
    """

    pixels: Array
    alpha: Array | None
    profile: bytes | None


def levels_of_grey(y: Array, method: str) -> Array:
    """Normalized numbers as grey values from 0 (black) to 255 (white).

    With method "Standardize" the mean is the grey in the middle, black and white are 2.5 deviations away. With method
    "RMS" black is 0, and white twice the root mean square. Numbers beyond are black or white, and NaN is black.

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
    """Read a picture, turned as its EXIF data says.

    Raises
    ------
    FileError
        It is missing, or no picture, or an incomplete one, or has too many pixels.
    """
    open_regular(path).close()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # beyond twice its limit, Pillow raises
            with Image.open(path, formats=sorted({*FORMATS.values()})) as image:
                return _picture(image)
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        msg = f"{path} has more than {most:,} pixels, as a small file that unpacks to a huge picture has\n"
        msg += "save it as a .npy file, if the picture is really that large"
        raise FileError(msg, code="F040") from None
    except UnidentifiedImageError:
        raise _not_a_picture(path, "it is neither PNG nor JPEG") from None
    except OSError as error:
        if error.errno is not None:
            raise cannot_read(path, error) from None
        raise _not_a_picture(path, str(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything for a damaged file
        raise _not_a_picture(path, str(error) or type(error).__name__) from None


def _picture(image: Image.Image) -> Picture:
    tiles = getattr(image, "tile", ())
    raw = tiles[0][3] if tiles and isinstance(tiles[0][3], str) else ""
    found = ImageOps.exif_transpose(image)
    profile, key = found.info.get("icc_profile"), found.info.get("transparency")
    alpha = _keyed(np.asarray(found.convert("L") if found.mode == "1" else found), key, raw, found.mode)
    if found.mode == "1":
        found = found.convert("L")
    elif found.mode not in {"L", "LA", "RGB", "RGBA", "I;16", "I"}:
        profile = None if found.mode == "CMYK" else profile  # the colours of the profile are inks
        found = found.convert("RGBA" if found.has_transparency_data else "RGB")
    pixels = np.asarray(found)
    if found.mode in {"LA", "RGBA"}:
        pixels, alpha = pixels[..., :-1], pixels[..., -1]
    return Picture(pixels if pixels.ndim == 3 else pixels[..., None], alpha, profile)


def _keyed(pixels: Array, key: Any, raw: str, mode: str) -> Array | None:
    """The transparency of a picture that has a transparent colour: 0 where the pixel has it, 255 elsewhere."""
    if mode in {"1", "L", "I;16", "I"} and isinstance(key, int):
        grey = (255 if key else 0) if mode == "1" else key * EXPANDED.get(raw, 1)
        return np.where(pixels == grey, 0, 255).astype(np.uint8)
    if mode == "RGB" and isinstance(key, tuple) and len(key) == 3:
        # Of colours of 16 bits Pillow reads the upper 8.
        colour = np.array(key) >> 8 if raw.endswith(";16B") else np.array(key)
        return np.where((pixels == colour).all(-1), 0, 255).astype(np.uint8)
    return None


def _not_a_picture(path: Path, why: str) -> FileError:
    msg = f"{path} cannot be read as a picture: {why.rstrip('.')}\nwrite or copy the file again"
    return FileError(msg, code="F010")


def without_alpha(path: Path, source: Path) -> FileError:
    """The error for a picture with transparency and an output format without."""
    msg = f"{source} has transparency, and a {path.suffix} file has none\nwrite a .png file"
    return FileError(msg, code="F011")


def save_picture(path: Path, picture: Picture, suffix: str) -> None:
    """Write a picture of 8 bits a colour, in the format of a suffix.

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
