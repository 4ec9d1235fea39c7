"""Folders of images: how they are found, labelled, brought to one size, and read."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image, ImageOps

from minimand.study._settings import StudyError, check_count

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Folders that tell training images from test images; True marks the test images.
_SIDES = {"train": False, "training": False, "val": False, "valid": False, "validation": False, "test": True}
_GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_MAX_SIDE = 256
_DEFAULT_SIDE = 64
_MAX_BYTES = 4 * 2**30
# Images whose brightest pixel is darker than this, of 255, are likely stored in fewer bits than their files hold.
_DARK = 17


@dataclass(frozen=True)
class Images:
    """Labelled images of one size.

    Use `read_images` to read a folder of them.

    Attributes:
        x: (n, height, width, channels) in uint8, with one channel for grey and three for colour.
        labels: label of each image.
        files: path of each image relative to the folder, in sorted order.
        test: (n,) booleans that mark the images of a given test set; None without one.
        notes: sentences about images that were resized or left out.

    Examples:
        >>> import numpy as np
        >>> from minimand.study._images import Images
        >>> Images(np.zeros((2, 8, 8, 1), "uint8"), ["cat", "dog"], ["cat/1.png", "dog/1.png"], None, ()).x.shape
        (2, 8, 8, 1)
    """

    x: np.ndarray
    labels: list[str]
    files: list[str]
    test: np.ndarray | None
    notes: tuple[str, ...]


def read_images(
    folder: Path,
    *,
    labels: Path | None = None,
    target: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    colour: bool | None = None,
) -> Images:
    """Read a folder of images whose labels are the names of its subfolders or stand in a CSV file.

    Use it for `photos/cat/1.jpg`, for `photos/train/cat/1.jpg` beside `photos/test/cat/1.jpg`, or for any folder with
    a table of labels. Images of another size are scaled and cropped about their centre, which keeps their aspect.
    Transparent pixels become white, and 16 bits become 8. Files whose names begin with a dot, and files that are not
    images by their suffix, are ignored.

    Args:
        folder: the folder.
        labels: CSV file with a header, a column of file names, and a column of labels. A file name is a path or the
            end of one, with or without its suffix. Images below `test/` that the file does not name have the name of
            their subfolder as their label.
        target: column of the labels; by default the only one beside the file names.
        image_size: height and width in pixels, or one number for both. By default the size that all images have if
            no side exceeds 256 pixels; otherwise 64, or the median of the shorter sides if that is smaller.
        colour: True for three channels, False for one; by default one if all images are grey.

    Returns:
        The images, in the order of their paths.

    Raises:
        StudyError: images cannot be read, labels are missing or contradictory, or the images need over 4 GiB.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (folder / name).mkdir()
        ...     Image.new("L", (8, 6)).save(folder / name / "1.png")
        >>> images = read_images(folder)
        >>> images.x.shape, images.labels
        ((2, 6, 8, 1), ['cat', 'dog'])
    """
    files, empty = _find(folder)
    notes = [f"folders without an image: {_some(empty)}"] if empty else []
    sides = {file.parts[0] for file in files if len(file.parts) > 1}
    divided = {side.lower() for side in sides} <= set(_SIDES) and any(not _SIDES[side.lower()] for side in sides)
    if divided and (joined := sorted(side for side in sides if side.lower().startswith("val"))):
        notes.append(f"images below {joined[0]}/ are training images; the study chooses its validation images itself")

    def is_test(file: PurePosixPath) -> bool:
        return divided and _SIDES.get(file.parts[0].lower(), False)

    # A class is the first folder, or the second one below train/ and test/.
    depth = 1 if divided else 0
    label_of = {file: file.parts[depth] for file in files if len(file.parts) > depth + 1}
    given: dict[PurePosixPath, str] = {}
    if labels is not None:
        given, unknown = _read_labels(labels, folder, files, target)
        if unknown:
            notes.append(f"{labels.name} names {len(unknown)} files that do not exist: {_some(unknown)}")
        label_of = {file: label for file, label in label_of.items() if is_test(file)} | given
    elif target is not None:
        raise StudyError(f"--target {target} needs a table of labels. Pass --labels FILE, or leave out --target.")
    if left_out := [file for file in files if file not in label_of]:
        notes.append(f"{len(left_out)} images without a label are left out: {_some(left_out)}")
    files = [file for file in files if file in label_of]
    test = np.array([is_test(file) for file in files], dtype=bool)
    learned = {label_of[file] for file, tested in zip(files, test, strict=True) if not tested}
    if len(learned) < 2:
        raise StudyError(
            f"{folder} must have training images with at least two labels. Received: {_some(learned) or 'none'}. Put "
            "each class into a folder of its own, or pass --labels FILE."
        )
    # Labels of a table may be numbers, whose values need not occur twice.
    unseen = {label_of[file] for file in files if file not in given} - learned
    if unseen:
        raise StudyError(
            f"Test images have labels that no training image has: {_some(unseen)}. Add training images with these "
            "labels, or remove the test images."
        )
    x, resized = _read(folder, files, image_size, colour)
    names = [file.as_posix() for file in files]
    return Images(x, [label_of[f] for f in files], names, test if test.any() else None, (*notes, *resized))


def _find(folder: Path) -> tuple[list[PurePosixPath], list[str]]:
    """The images below a folder, sorted, and the folders that hold neither an image nor a folder."""
    if not folder.is_dir():
        raise StudyError(f"{folder} must be a folder of images. Received: a path that is not a folder")
    files, empty = [], []
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        path = PurePosixPath(Path(here).relative_to(folder).as_posix())
        found = [path / n for n in names if Path(n).suffix.lower() in _SUFFIXES and not n.startswith(".")]
        files += found
        if not found and not folders:
            empty.append(path.as_posix())
    if not files:
        raise StudyError(f"{folder} has no image. Give a folder of files that end in {', '.join(sorted(_SUFFIXES))}.")
    return sorted(files), sorted(empty)


def _read_labels(
    table: Path, folder: Path, files: list[PurePosixPath], target: str | None
) -> tuple[dict[PurePosixPath, str], list[str]]:
    """The labels that a CSV file gives, and the file names in it that do not exist."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"--labels {table} cannot be read: {error}. Give a CSV file in UTF-8.") from error
    header = text.partition("\n")[0]
    rows = list(csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=header.count), restval=""))
    columns = [name for name in (rows[0] if rows else {}) if name is not None]
    # An image goes by any end of its path, with or without its suffix, unless two images share that end.
    by_end: dict[str, set[PurePosixPath]] = {}
    for file in files:
        parts = (folder.resolve().name, *file.parts)
        for start in range(len(parts)):
            end = PurePosixPath(*parts[start:])
            for name in (end.as_posix(), end.with_suffix("").as_posix()):
                by_end.setdefault(name, set()).add(file)
    by_name = {name: file for name, (file, *others) in by_end.items() if not others}
    by_name |= {file.as_posix(): file for file in files}
    named = {
        column: [PurePosixPath(row[column].strip().replace("\\", "/")).as_posix() for row in rows] for column in columns
    }
    counts = {column: len({by_name[name] for name in named[column] if name in by_name}) for column in columns}
    if not any(counts.values()):
        raise StudyError(
            f"--labels {table} must have a column of names of images in {folder}. Columns: {', '.join(columns)}."
        )
    file_column = max(columns, key=lambda column: counts[column])
    others = [column for column in columns if column != file_column]
    if target is None and len(others) == 1:
        target = others[0]
    if target not in others:
        received = "" if target is None else f" Received: {target!r}"
        raise StudyError(f"--target must name the column of labels in {table}: {', '.join(others)}.{received}")
    label_of: dict[PurePosixPath, str] = {}
    for name, row in zip(named[file_column], rows, strict=True):
        label = row[target].strip()
        if name in by_name and label and label_of.setdefault(by_name[name], label) != label:
            raise StudyError(
                f"--labels {table} gives {name} two labels: {label_of[by_name[name]]}, {label}. Remove one."
            )
    return label_of, [name for name in named[file_column] if name not in by_name]


def _read(
    folder: Path, files: list[PurePosixPath], image_size: int | tuple[int, int] | None, colour: bool | None
) -> tuple[np.ndarray, list[str]]:
    """The pixels of all images, and notes if their sizes differ from the size asked for or they are dark."""
    failures: dict[PurePosixPath, Exception] = {}

    def header(file: PurePosixPath) -> tuple[tuple[int, int], bool] | None:
        """(height, width) as the image is shown, and whether it is grey."""
        try:
            with Image.open(folder / file) as image:
                width, height = image.size
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return (width, height) if turned else (height, width), image.mode in _GREY
        # Pillow raises errors of many types for a file that is not what its name says.
        except Exception as error:
            failures[file] = error
            return None

    with ThreadPoolExecutor() as threads:
        headers = [found for found in threads.map(header, files) if found is not None]
        sizes = Counter(size for size, _ in headers)
        height, width = _size(sizes, image_size)
        channels = 3 if colour or (colour is None and not all(grey for _, grey in headers)) else 1
        needed = len(files) * height * width * channels
        if needed > _MAX_BYTES:
            side = int((_MAX_BYTES / len(files) / channels) ** 0.5)
            raise StudyError(
                f"{len(files)} images of {height} x {width} x {channels} bytes need {needed / 2**30:.1f} GiB, and a "
                f"study takes at most {_MAX_BYTES / 2**30:.0f} GiB. Pass --image-size {side} or a smaller one."
            )
        x = np.zeros((len(files), height, width, channels), "uint8")

        def pixels(index: int) -> None:
            try:
                x[index] = _pixels(folder / files[index], height, width, channels)
            except Exception as error:
                failures.setdefault(files[index], error)

        list(threads.map(pixels, range(len(files))))
    if failures:
        first = min(failures)
        raise StudyError(
            f"{len(failures)} of {len(files)} images cannot be read: {_some(failures)}. Remove or replace them. The "
            f"error of the first is {type(failures[first]).__name__}: {failures[first]}"
        )
    notes = []
    if (brightest := x.max()) < _DARK:
        notes.append(
            f"the brightest pixel is {brightest} of 255. If 10 or 12 bits are stored in 16, scale the images to 16 bits"
        )
    if set(sizes) == {(height, width)}:
        return x, notes
    before = f"{len(sizes)} sizes" if len(sizes) > 1 else "{} x {}".format(*min(sizes))
    return x, [f"images of {before} are resized to {height} x {width}; --image-size changes that", *notes]


def _size(sizes: Counter[tuple[int, int]], image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        return check_count("--image-size", height), check_count("--image-size", width)
    if len(sizes) == 1 and max(min(sizes)) <= _MAX_SIDE:
        return min(sizes)
    side = min(_DEFAULT_SIDE, int(np.median([min(size) for size in sizes.elements()]))) if sizes else _DEFAULT_SIDE
    return side, side


def _pixels(file: Path, height: int, width: int, channels: int) -> np.ndarray:
    """An image in uint8 of shape (height, width, channels)."""
    with Image.open(file) as opened:
        # A large JPEG is decoded at a half, quarter or eighth of its size.
        opened.draft(None, (2 * max(height, width),) * 2)
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers; save them in 8 or 16 bits")
        if image.mode.startswith("I"):
            image = Image.fromarray(np.clip(np.asarray(image, "float64") / 257 + 0.5, 0, 255).astype("uint8"))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB" if channels == 3 else "L")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(height, width, channels)


def _some(items: Iterable[object]) -> str:
    """The first few items in sorted order."""
    names = sorted(map(str, items))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
