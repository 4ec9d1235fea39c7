"""Folders of images."""

import numpy as np
import pytest
from PIL import Image

from minimand.study import StudyError
from minimand.study._images import read_images


def _save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    image.save(path, **options)


def _pixels(seed, shape=(8, 8)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype="uint8")


@pytest.fixture
def pets(tmp_path):
    for seed, name in enumerate(("dog/b.png", "cat/a.png", "cat/c.png", "dog/deep/d.png")):
        _save(tmp_path / "pets" / name, _pixels(seed))
    return tmp_path / "pets"


def test_a_folder_is_a_class_and_files_are_sorted(pets):
    (pets / "cat" / "notes.txt").write_text("not an image")
    _save(pets / "cat" / ".hidden.png", _pixels(9))
    _save(pets / ".cache" / "x.png", _pixels(9))
    images = read_images(pets)
    assert images.files == ["cat/a.png", "cat/c.png", "dog/b.png", "dog/deep/d.png"]
    assert images.labels == ["cat", "cat", "dog", "dog"]
    assert images.test is None
    assert images.notes == ()
    np.testing.assert_array_equal(images.x[..., 0], [_pixels(seed) for seed in (1, 2, 0, 3)])


def test_what_a_folder_leaves_out_is_told(pets):
    _save(pets / "stray.png", _pixels(9))
    (pets / "mouse").mkdir()
    images = read_images(pets)
    assert len(images.files) == 4
    assert images.notes == ("folders without an image: mouse", "1 images without a label are left out: stray.png")


def test_one_colour_image_makes_all_colour(pets):
    _save(pets / "dog" / "e.png", _pixels(5, (8, 8, 3)))
    x = read_images(pets).x
    np.testing.assert_array_equal(x[0], np.repeat(_pixels(1)[..., None], 3, axis=-1))
    np.testing.assert_array_equal(x[-1], _pixels(5, (8, 8, 3)))
    assert read_images(pets, colour=False).x.shape == (5, 8, 8, 1)
    (pets / "dog" / "e.png").unlink()
    assert read_images(pets, colour=True).x.shape == (4, 8, 8, 3)


def test_pixels_of_each_kind(tmp_path):
    deep = np.array([[0, 257, 128], [65535, 32768, 129]], "uint16")
    _save(tmp_path / "a" / "16.png", deep)
    clear = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]]] * 2, "uint8")
    _save(tmp_path / "a" / "alpha.png", clear)
    rgb = _pixels(0, (3, 2, 3))
    exif = Image.Exif()
    exif[274] = 6
    _save(tmp_path / "b" / "turned.png", rgb, exif=exif)
    _save(tmp_path / "b" / "bits.png", Image.fromarray(np.array([[0, 255, 0], [255, 0, 0]], "uint8")).convert("1"))
    images = read_images(tmp_path)
    assert images.x.shape == (4, 2, 3, 3)
    # 65535 / 257 = 255, and halves round up.
    np.testing.assert_array_equal(images.x[0, :, :, 0], [[0, 1, 0], [255, 128, 1]])
    np.testing.assert_array_equal(images.x[1, 0], [[255, 255, 255], [10, 20, 30], [204, 204, 204]])
    np.testing.assert_array_equal(images.x[2, :, :, 1], [[0, 255, 0], [255, 0, 0]])
    assert images.notes == ()
    # Orientation 6 is shown after a quarter turn clockwise.
    np.testing.assert_array_equal(images.x[3], np.rot90(rgb, -1))


def test_images_that_use_few_of_their_bits_are_told(tmp_path):
    for index in range(2):
        _save(tmp_path / "ab"[index] / "12.png", np.array([[0, 4095, 8 * index]], "uint16"))
    (note,) = read_images(tmp_path).notes
    assert note.startswith("the brightest pixel is 16 of 255")


def test_sizes_are_unified_about_the_centre(pets):
    # A grey square in the middle of a wide white image.
    wide = np.full((10, 30), 255, "uint8")
    wide[:, 10:20] = 100
    _save(pets / "cat" / "wide.png", wide)
    images = read_images(pets)
    assert images.x.shape == (5, 8, 8, 1)
    assert images.notes == ("images of 2 sizes are resized to 8 x 8; --image-size changes that",)
    square = images.x[images.files.index("cat/wide.png"), :, :, 0].astype(int)
    np.testing.assert_array_equal(square[:, 2:-2], 100)
    assert read_images(pets, image_size=16).x.shape == (5, 16, 16, 1)
    assert read_images(pets, image_size=(4, 6)).x.shape == (5, 4, 6, 1)


def test_unreadable_images_are_named_and_counted(pets):
    whole = (pets / "cat" / "a.png").read_bytes()
    (pets / "cat" / "cut.png").write_bytes(whole[:60])
    for name in "vwxyz":
        (pets / "dog" / f"{name}.jpg").write_text("not an image")
    with pytest.raises(
        StudyError, match=r"^6 of 10 images cannot be read: cat/cut.png, dog/v.jpg, dog/w.jpg and 3 more\."
    ):
        read_images(pets)


def test_memory_is_refused_before_pixels_are_read(pets, monkeypatch):
    monkeypatch.setattr("minimand.study._images._MAX_BYTES", 4 * 8 * 8 - 1)
    monkeypatch.setattr("minimand.study._images._pixels", None)
    with pytest.raises(StudyError, match=r"4 images of 8 x 8 x 1 bytes need .* Pass --image-size 7 or"):
        read_images(pets)


def _table(folder, text):
    file = folder / "labels.csv"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "text",
    [
        "file,label\ncat/a.png,small\ncat/c.png,small\ndog/b.png,big\ndog/deep/d.png,big\n",
        "\ufefflabel;file\r\nbig;b.png\r\nsmall;c.png\r\nsmall;a.png\r\nbig;d.png\r\n",
        'id\tlabel\na\tsmall\nc\tsmall\n"b"\tbig\ndeep\\d\tbig\n',
        "path,label\npets/cat/a.png,small\n./cat/c.png,small\ndog/b,big\npets/dog/deep/d,big\n",
    ],
)
def test_a_table_of_labels(pets, text):
    images = read_images(pets, labels=_table(pets, text))
    assert images.labels == ["small", "small", "big", "big"]
    assert images.notes == ()


def test_a_table_of_several_columns(pets):
    file = _table(pets, "file,clean,noisy\na.png,1,0\nb.png,0,1\nc.png,1,\nx.png,1,1\n")
    images = read_images(pets, labels=file, target="noisy")
    assert images.files == ["cat/a.png", "dog/b.png"]
    assert images.labels == ["0", "1"]
    assert images.notes == (
        "labels.csv names 1 files that do not exist: x.png",
        "2 images without a label are left out: cat/c.png, dog/deep/d.png",
    )
    with pytest.raises(StudyError, match=r"--target must name the column of labels in .*: clean, noisy\.$"):
        read_images(pets, labels=file)
    with pytest.raises(StudyError, match=r"clean, noisy\. Received: 'file'"):
        read_images(pets, labels=file, target="file")


@pytest.fixture
def divided(tmp_path):
    for seed, name in enumerate(("test/cat/a.png", "test/dog/b.png", "train/cat/a.png", "train/dog/b.png")):
        _save(tmp_path / name, _pixels(seed))
    return tmp_path


def test_a_given_test_set(divided):
    images = read_images(divided)
    assert images.labels == ["cat", "dog"] * 2
    np.testing.assert_array_equal(images.test, [True, True, False, False])
    # A table may label the training images only.
    file = _table(divided, "file,label\ntrain/cat/a.png,dog\ntrain/dog/b.png,cat\n")
    assert read_images(divided, labels=file).labels == ["cat", "dog", "dog", "cat"]
    _save(divided / "val" / "dog" / "e.png", _pixels(9))
    images = read_images(divided)
    np.testing.assert_array_equal(images.test, [True, True, False, False, False])
    assert images.notes[0].startswith("images below val/ are training images")


def test_bad_folders(divided):
    with pytest.raises(StudyError, match="a path that is not a folder"):
        read_images(divided / "none")
    with pytest.raises(StudyError, match=r"at least two labels\. Received: none"):
        read_images(divided / "train" / "cat")
    with pytest.raises(StudyError, match=r"--target label needs a table of labels"):
        read_images(divided, target="label")
    file = _table(divided, "name,label\nx.png,cat\n")
    with pytest.raises(StudyError, match=r"a column of names of images in .*\. Columns: name, label\."):
        read_images(divided, labels=file)
    file.write_text("file,label\ntrain/cat/a.png,cat\ntrain/cat/a.png,dog\n")
    with pytest.raises(StudyError, match=r"gives train/cat/a.png two labels: cat, dog"):
        read_images(divided, labels=file)
    _save(divided / "test" / "cow" / "c.png", _pixels(9))
    with pytest.raises(StudyError, match="labels that no training image has: cow"):
        read_images(divided)
    (divided / "train" / "cat" / "a.png").unlink()
    with pytest.raises(StudyError, match="has no image"):
        read_images(divided / "train" / "cat")
