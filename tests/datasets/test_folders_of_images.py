"""Folders as cameras and file systems leave them: what is an image, a class and an id."""

from __future__ import annotations

import unicodedata
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError
from pipeline.datasets.base import ImageDataset, content_digest, open_dataset
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.datasets.image_folder import ImageFolder
from pipeline.datasets.samples import Images
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.synthetic import Synthetic
from pipeline.datasets.torchvision import TorchvisionDataset
from pipeline.extraction.extract import extract
from pipeline.rendering.file_names import sample_stem
from pipeline.rendering.sample_selection import choose_rows
from tests.conftest import photo, tiny_extraction
from tests.helpers.picture_bytes import png_bytes

PICTURE = png_bytes(photo(0, (12, 10)))


def put(root: Path, *names: str) -> Path:
    """Write the same picture under several names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PICTURE)
    return root


def labels(dataset: ImageDataset) -> list[tuple[str, int]]:
    return [(sample.id, sample.label) for sample in open_dataset(dataset).samples]


@pytest.mark.parametrize(
    "folder",
    ["@eaDir", "__MACOSX", ".thumbnails", ".ipynb_checkpoints", ".git", ".DS_Store", "lost+found",
     "$RECYCLE.BIN", "#recycle", "System Volume Information"],
)  # fmt: skip
def test_folders_of_systems_are_no_classes(tmp_path: Path, folder: str) -> None:
    put(tmp_path, f"{folder}/a.png", f"{folder}/cats/a.png", f"cats/{folder}/a.png",
        "cats/1.png", "dogs/deep/2.png")  # fmt: skip
    expected = [("cats/1.png", 0), ("dogs/deep/2.png", 1)]
    assert labels(ImageFolder(root=str(tmp_path))) == expected
    assert labels(ImageFolder(root=str(tmp_path), limit=1)) == expected[:1]
    assert labels(FlatFolder(root=str(tmp_path / folder))) == [("a.png", -1), ("cats/a.png", -1)]


@pytest.mark.parametrize(
    ("exclude", "ids"),
    [
        ("raw", ["ant/1.png", "ant/old/2.png", "bee_old/3.png", "cow/4.png"]),
        ("**/raw/", ["ant/1.png", "ant/old/2.png", "bee_old/3.png", "cow/4.png"]),
        (["*old", "./cow"], ["ant/1.png", "raw/5.png"]),
        ("ant/*", ["bee_old/3.png", "cow/4.png", "raw/5.png"]),
        ("ant/old", ["ant/1.png", "bee_old/3.png", "cow/4.png", "raw/5.png"]),
        (["[a-c]*", "nothing"], ["raw/5.png"]),
        ("5.png", ["ant/1.png", "ant/old/2.png", "bee_old/3.png", "cow/4.png"]),
    ],
)
def test_what_is_excluded_takes_no_number(
    tmp_path: Path, exclude: str | list[str], ids: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "ant/1.png", "ant/old/2.png", "bee_old/3.png", "cow/4.png", "raw/5.png")
    classes = sorted({name.split("/")[0] for name in ids})
    for limit in (None, 1, len(ids)):
        found = labels(ImageFolder(root=str(tmp_path), exclude=exclude, limit=limit))
        assert found == [(name, classes.index(name.split("/")[0])) for name in ids][:limit]
    flat = open_dataset(FlatFolder(root=str(tmp_path), exclude=exclude))
    assert [sample.id for sample in flat.samples] == ids
    assert ("matches 'nothing'" in caplog.text) == ("nothing" in exclude)
    with pytest.raises(ConfigError, match=r"no image files .*dataset\.exclude"):
        open_dataset(FlatFolder(root=str(tmp_path), exclude="*"))


def test_links_to_folders_neither_repeat_images_nor_make_classes(tmp_path: Path) -> None:
    root, outside = put(tmp_path / "root", "b/1.png", ".hidden/h.png"), tmp_path / "outside"
    put(outside, "2.png")
    (root / "a").symlink_to(root / "b")  # before it by name
    (root / "c").symlink_to(outside)
    (root / "d").symlink_to(outside)
    (root / "e").symlink_to(root / ".hidden")  # reached by this name only
    (outside / "back").symlink_to(root)
    (root / "f").symlink_to(root / "f")
    expected = [("b/1.png", 0), ("c/2.png", 1), ("e/h.png", 3)]
    for limit in (None, 3, 2, 1):
        assert labels(ImageFolder(root=str(root), limit=limit)) == expected[:limit]


def test_ids_are_the_same_whatever_the_file_system_makes_of_accents(tmp_path: Path) -> None:
    """macOS's older file system decomposes names; zip files and network storage keep that."""
    names = ["zebra/Ångström.png", "Éclair/señor.png", "eclipse/a.png"]
    found = {}
    for form in ("NFC", "NFD"):
        root = put(tmp_path / form, *(unicodedata.normalize(form, name) for name in names))
        extract(tiny_extraction(tmp_path / f"a{form}", dataset=ImageFolder(root=str(root)),
                                layers=LayerSelector(include=("conv1",))))  # fmt: skip
        with Archive.open(tmp_path / f"a{form}") as archive:
            found[form] = [(s.id, s.label, s.label_name) for s in archive.samples]
            ids = [sample.id for sample in archive.samples]
            for word in ("señor", unicodedata.normalize("NFD", names[1])):
                assert [ids[row] for row in choose_rows(ids, [word])] == [names[1]]
            assert archive.samples[unicodedata.normalize("NFD", names[0])].id == names[0]
    assert found["NFC"] == found["NFD"]
    assert found["NFC"] == [
        ("eclipse/a.png", 0, "eclipse"), (names[0], 1, "zebra"), (names[1], 2, "Éclair")
    ]  # fmt: skip


def test_ids_that_look_the_same_are_refused_and_pictures_never_collide(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é.png")
    put(tmp_path / "a", "é.png", decomposed)
    with pytest.raises(
        ConfigError, match=r"look like 'é.png'.*'e\\u0301.png', '\\xe9.png'.*rename"
    ):
        open_dataset(FlatFolder(root=str(tmp_path / "a")))
    with pytest.raises(ConfigError, match="only in their Unicode form"):
        open_dataset(FromSequence(items=[photo()] * 2, ids=("é.png", decomposed)))
    put(tmp_path / "b", "cat.png", "Cat.png", "CAT.png")
    ids = [sample.id for sample in open_dataset(FlatFolder(root=str(tmp_path / "b"))).samples]
    assert ids == ["CAT.png", "Cat.png", "cat.png"]
    ids += ["é", decomposed, "straße", "STRASSE"]
    stems = {
        unicodedata.normalize("NFD", sample_stem(row, name)).casefold()
        for row, name in enumerate(ids)
    }
    assert len(stems) == len(ids)


class Counted:
    """A sequence that counts what is read of it."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        self.read.append(index)
        return photo(index, (6, 5)), "cat"


def digested(dataset: ImageDataset) -> Images:
    images = open_dataset(dataset)
    assert content_digest(images)
    assert len(images.samples) == dataset.limit == 2
    return images.images


def test_a_limit_bounds_the_work_of_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = Counted(2000)
    digested(FromSequence(items=items, limit=2))
    assert set(items.read) == {0, 1}
    digested(FromSequence(items=(photo(i, (6, 5)) for i in count()), limit=2))
    assert len(open_dataset(Synthetic(samples=10**12, limit=2)).samples) == 2

    unlabelled = Counted(2000)
    monkeypatch.setattr("torchvision.datasets.FakeData", lambda: unlabelled)
    digested(TorchvisionDataset(name="FakeData", limit=2))
    assert set(unlabelled.read) == {0, 1}

    put(tmp_path, *(f"{name}/{i}.png" for name in "abc" for i in range(3)))
    (tmp_path / "a" / "unread").mkdir()
    listed: list[str] = []
    scandir = __import__("os").scandir
    monkeypatch.setattr("os.scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    digested(FlatFolder(root=str(tmp_path), limit=2))
    assert listed == [tmp_path.name, "a"]


def test_a_short_name_that_fits_several_samples_or_a_row_is_refused() -> None:
    ids = ["a/1.png", "b/1.png", "c/1.png", "c/2.png", "3.png", "9.jpg"]
    for word, text in (
        ("1", r"'1' is row 1 \(b/1.png\), and short for a/1.png, b/1.png, c/1.png; .*1:2"),
        ("1.png", r"'1\.png' is short for a/1.png, b/1.png, c/1.png; give a whole id, or a glob"),
        ("2", r"is row 2 \(c/1.png\), and short for c/2.png"),
    ):
        with pytest.raises(ConfigError, match=text):
            choose_rows(ids, [word])
    for word, rows in (
        ("b/1.png", [1]), ("b/1", [1]), ("1:2", [1]), ("*/1.png", [0, 1, 2]), ("0", [0]),
        ("-2", [4]), ("9", [5]), ("c/2", [3]),
    ):  # fmt: skip
        assert choose_rows(ids, [word]) == rows, word
    assert choose_rows(["0.png", "1.png", "2.png"], ["1"]) == [1]  # row and name are the same
    assert choose_rows(["x", "1", "1.png"], ["1"]) == [1]  # an id comes first
    assert choose_rows(["5", "x", "0"], ["0", "5"]) == [2, 0]


@pytest.mark.parametrize("method", ["is_dir", "is_file"])  # of the root, of files in a folder
def test_folders_without_permission_are_named(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(tmp_path, "a/0.png")

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refused)
    if method == "is_dir":
        monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(ConfigError, match=r"^dataset\.root: .* cannot be read: Permission denied$"):
        open_dataset(FlatFolder(root=str(root)))
