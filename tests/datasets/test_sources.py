"""Every model source and every dataset source, on real files that the tests make."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from PIL import Image, ImageSequence

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError, SampleError
from pipeline.datasets import files
from pipeline.datasets.adapter import as_image, as_label
from pipeline.datasets.base import ImageDataset, open_dataset
from pipeline.datasets.csv import CsvFile
from pipeline.datasets.decoding import Decoding, decode
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.datasets.huggingface import HuggingFaceDataset
from pipeline.datasets.image_folder import ImageFolder
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.torchvision import TorchvisionDataset
from pipeline.datasets.webdataset import WebDataset
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from tests.conftest import photo, tiny_extraction
from tests.helpers.picture_bytes import png_bytes

LABELS = {"ant": 0, "bee": 1}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos in two class folders."""
    root = tmp_path_factory.mktemp("classes")
    for i, name in enumerate(("ant", "ant", "bee", "bee", "bee")):
        (root / name).mkdir(exist_ok=True)
        Image.fromarray(photo(i, (30 + i, 26))).save(root / name / f"{i}.png")
    return root


def sources(classes: Path, place: Path) -> dict[str, tuple[ImageDataset, list[str], list[int]]]:
    """Return every kind of dataset over the five photos, with the ids and labels it must have."""
    files = sorted(classes.rglob("*.png"))
    labels = [LABELS[path.parent.name] for path in files]
    relative = [path.relative_to(classes).as_posix() for path in files]
    with (place / "images.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path", "label", "more"])
        writer.writerows(
            [f"n{i}", path, name, "x"]
            for i, (path, name) in enumerate(
                zip(files, [p.parent.name for p in files], strict=True)
            )
        )
    for number, part in enumerate((files[:3], files[3:])):
        with tarfile.open(place / f"s-{number:02d}.tar", "w") as archive:
            for path in part:
                for ending, content in (
                    ("png", path.read_bytes()),
                    ("cls", str(LABELS[path.parent.name]).encode()),
                    ("json", json.dumps({"note": 1}).encode()),
                ):
                    member = tarfile.TarInfo(f"k{path.stem}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    items = [
        (Image.open(path).convert("RGB"), label) for path, label in zip(files, labels, strict=True)
    ]
    keys = [f"k{i}" for i in range(5)]
    return {
        "image_folder": (ImageFolder(root=str(classes)), relative, labels),
        "flat_folder": (FlatFolder(root=str(classes)), relative, [-1] * 5),
        "csv": (CsvFile(path=str(place / "images.csv")), [f"n{i}" for i in range(5)], labels),
        "torchvision": (
            TorchvisionDataset(name="ImageFolder", root=str(classes)),
            [f"ImageFolder-{i:06d}" for i in range(5)],
            labels,
        ),
        "huggingface": (
            HuggingFaceDataset(name="imagefolder", arguments={"data_dir": str(classes)}),
            [f"train-{i:06d}" for i in range(5)],
            labels,
        ),
        "webdataset": (WebDataset(shards=(str(place / "s-{00..01}.tar"),)), keys, labels),
        "sequence": (FromSequence(items=items), [f"item-{i:06d}" for i in range(5)], labels),
    }


KINDS = (
    "image_folder", "flat_folder", "csv", "torchvision", "huggingface", "webdataset", "sequence"
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        *((kind, 0) for kind in KINDS),
        *(
            pytest.param(kind, 2, marks=[] if kind == "webdataset" else [pytest.mark.slow])
            for kind in KINDS
        ),
    ],
)
def test_each_dataset_source_row_by_row(
    kind: str, workers: int, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    dataset, ids, labels = sources(classes, tmp_path)[kind]
    images = open_dataset(dataset)
    sent = pickle.loads(pickle.dumps(images))  # as to workers that are not forked
    assert sent.samples == images.samples
    assert [sent.read(i) for i in range(5)] == [images.read(i) for i in range(5)]
    loader = Loader(batch_size=2, num_workers=workers)
    extract(
        tiny_extraction(
            tmp_path / "a", dataset=dataset, loader=loader, layers=LayerSelector(include=("conv1",))
        )
    )
    files = sorted(classes.rglob("*.png"))
    with Archive.open(tmp_path / "a") as archive:
        transform = tiny_extraction(tmp_path).model.load().transform
        assert [sample.id for sample in archive.samples] == ids
        assert [sample.label for sample in archive.samples] == labels
        for i, path in enumerate(files):
            expected = transform.pixels(Image.open(path).convert("RGB"))
            np.testing.assert_array_equal(archive.image(i).transpose(2, 0, 1), expected)
        if kind in ("image_folder", "csv", "torchvision", "huggingface"):
            names = [path.parent.name for path in files]
            assert [sample.label_name for sample in archive.samples] == names


def test_torchvisions_fake_data_and_unknown_names() -> None:
    images = open_dataset(
        TorchvisionDataset(name="FakeData", arguments={"size": 3, "image_size": [3, 8, 8]})
    )
    assert len(images.samples) == 3
    assert all(sample.label >= 0 for sample in images.samples)
    with pytest.raises(ConfigError, match="did you mean CIFAR10"):
        open_dataset(TorchvisionDataset(name="CIFAR11"))
    for root, remedy in (
        ("/nonexistent", "use dataset.arguments.download=true to download it"),
        ("", "set dataset.root"),
    ):
        with pytest.raises(ConfigError, match=f"could not be opened: .*{remedy}"):
            open_dataset(TorchvisionDataset(name="CIFAR10", root=root))


def test_blank_lines_of_a_table_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("\n\npath,label\n\na.png,3\n\n")
    samples = open_dataset(CsvFile(path=str(tmp_path / "list.csv"))).samples
    assert [(sample.id, sample.label) for sample in samples] == [("a.png", 3)]


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = str(tmp_path / "pipe")
    for dataset in (CsvFile(path=path), WebDataset(shards=(path,))):
        with pytest.raises(ConfigError, match="pipe: not a regular file"):
            open_dataset(dataset)


def test_paths_of_masks_are_no_labels(tmp_path: Path) -> None:
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    (folder / "JPEGImages" / "a.jpg").write_bytes(png_bytes(photo(0, (9, 8))))
    (folder / "SegmentationClass" / "a.png").write_bytes(png_bytes(photo(1, (9, 8))))
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    (sample,) = open_dataset(TorchvisionDataset(name="VOCSegmentation", root=str(tmp_path))).samples
    assert (sample.label, sample.label_name) == (-1, "")
    with pytest.raises(ConfigError, match="could not be opened: NotImplementedError"):
        open_dataset(TorchvisionDataset(name="VisionDataset", root=str(tmp_path)))


def test_a_path_too_long_for_the_file_system_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"path\n {'x' * 300}\n")
    images = open_dataset(CsvFile(path=str(tmp_path / "a.csv")))
    with pytest.raises(SampleError, match="File name too long"):
        images.read(0)


def test_csv_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("file,label\na.png,1\n")
    with pytest.raises(ConfigError, match=r"dataset\.path_column: .*no column 'path'"):
        open_dataset(CsvFile(path=str(file)))
    with pytest.raises(ConfigError, match="did you mean label"):
        open_dataset(CsvFile(path=str(file), path_column="file", label_column="lable"))
    assert open_dataset(CsvFile(path=str(file), path_column="file")).samples[0].id == "a.png"
    file.write_text("path,id\na.png,1\nb.png,1\n")
    with pytest.raises(ConfigError, match="'1' occurs more than once"):
        open_dataset(CsvFile(path=str(file)))
    file.write_text("path,id\na.png\n")
    with pytest.raises(ConfigError, match="row 2: wrong number of cells"):
        open_dataset(CsvFile(path=str(file)))
    with pytest.raises(ConfigError, match="No such file"):
        open_dataset(CsvFile(path=str(tmp_path / "none.csv")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text("\ufefflabel,path\ncat,a.png\n", encoding=encoding)
    (sample,) = open_dataset(CsvFile(path=str(file), encoding=encoding)).samples
    assert (sample.id, sample.label_name) == ("a.png", "cat")


def test_a_torchvision_dataset_without_images(tmp_path: Path) -> None:
    (tmp_path / "SUN397").mkdir()
    (tmp_path / "SUN397/ClassName.txt").write_text("/a/abbey\n")
    with pytest.raises(ConfigError, match="it contains no images"):
        open_dataset(TorchvisionDataset(name="SUN397", root=str(tmp_path)))


@pytest.mark.parametrize("first_line", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_excels_first_line_names_the_delimiter(tmp_path: Path, first_line: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"{first_line}path;label\na,1.png;cat\n", newline="")
    images = open_dataset(CsvFile(path=str(file)))
    assert [(sample.id, sample.label_name) for sample in images.samples] == [("a,1.png", "cat")]


def test_paths_of_a_table_below_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = {
        "home/a.png": "~/a.png",
        "table/~nobody1.png": "~nobody1.png",
        "home/b.png": " ~/b.png",
    }
    for seed, file in enumerate(names):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(png_bytes(photo(seed)))
    table = tmp_path / "table/a.csv"
    table.write_text("\n".join(["path", *names.values()]))
    images = open_dataset(CsvFile(path=str(table)))
    assert [sample.id for sample in images.samples] == list(names.values())
    for row in range(len(names)):
        assert images.read(row) == png_bytes(photo(row))


def test_paths_written_on_windows(tmp_path: Path) -> None:
    names = {"a/b.png": r"a\b.png", r"c\d.png": r"c\d.png", "c/e.png": r".\c\e.png "}
    for seed, file in enumerate(names):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(png_bytes(photo(seed)))
    (tmp_path / "a.csv").write_text("\n".join(["path", *names.values()]))
    images = open_dataset(CsvFile(path=str(tmp_path / "a.csv")))
    assert [sample.id for sample in images.samples] == list(names.values())
    assert [images.read(row) for row in range(3)] == [png_bytes(photo(row)) for row in range(3)]


def test_ids_that_are_missing_or_no_values_are_refused(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({
        "image": [{"bytes": png_bytes(photo(i)), "path": None} for i in range(3)],
        "name": ["a", None, "c"], "number": [1, 2, None],
    })  # fmt: skip
    table.save_to_disk(str(tmp_path / "saved"))
    for column, text in (
        ("name", "'name' has no value in row 1;"),
        ("number", "'number' has no value in row 2;"),
        ("image", "the column 'image' of .* holds no ids, but Image"),
    ):
        dataset = HuggingFaceDataset(name=str(tmp_path / "saved"), id_column=column)
        with pytest.raises(ConfigError, match=rf"dataset\.id_column: {text}"):
            open_dataset(dataset)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_arrays_of_zarr_are_read_image_by_image(zarr_format: Any) -> None:
    """They have a shape, but no length."""
    pixels = np.stack([photo(seed, (12, 10)) for seed in range(3)])
    array = zarr.create_array(
        {}, shape=pixels.shape, dtype="u1", chunks=(1, 10, 12, 3), zarr_format=zarr_format
    )
    array[:] = pixels
    for limit in (None, 2):
        images = open_dataset(FromSequence(items=array, limit=limit))
        read = [np.asarray(images.read(i)) for i in range(len(images.samples))]
        np.testing.assert_array_equal(read, pixels[:limit])


def test_rows_of_structured_arrays() -> None:
    rows = np.zeros(2, [("label", ">i8"), ("image", "u1", (10, 12, 3))])
    rows["label"], rows["image"] = [4, 5], [photo(0, (12, 10)), photo(1, (12, 10))]
    images = open_dataset(FromSequence(items=rows))
    assert [sample.label for sample in images.samples] == [4, 5]
    for i in range(2):
        np.testing.assert_array_equal(np.asarray(images.read(i)), rows["image"][i])


def test_a_set_has_no_order() -> None:
    for items in ({"a.png", "b.png"}, frozenset(("a.png", "b.png"))):
        with pytest.raises(ConfigError, match=r"a set has no fixed order; use items=sorted\(…\)"):
            open_dataset(FromSequence(items=items))
    photos = {name: Image.fromarray(photo(seed)) for seed, name in enumerate("ba")}
    for ordered in (photos.values(), iter(photos.values()), (image for image in photos.values())):
        images = open_dataset(FromSequence(items=ordered, ids=tuple(photos)))
        assert [sample.id for sample in images.samples] == ["b", "a"]
        np.testing.assert_array_equal(np.asarray(images.read(1)), photo(1))


def test_an_item_that_fails_is_skipped_like_an_image_that_fails(tmp_path: Path) -> None:
    class Broken(list[tuple[np.ndarray, str]]):
        def __getitem__(self, index: int) -> tuple[np.ndarray, str]:  # type: ignore[override]
            if index == 1:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    items = Broken([(photo(seed), name) for seed, name in enumerate("aba")])
    extraction = tiny_extraction(
        tmp_path / "a", dataset=FromSequence(items=items), on_error="skip",
        layers=LayerSelector(include=("conv1",)),
    )  # fmt: skip
    assert extract(extraction).skipped == 1
    with Archive.open(tmp_path / "a") as archive:
        assert [(sample.id, sample.label_name) for sample in archive.samples] == [
            ("item-000000", "a"), ("item-000001", ""), ("item-000002", "a")
        ]  # fmt: skip
        assert not np.isnan(archive.layers["conv1"][2]).any()
    with pytest.raises(ConfigError, match=r"items=list\(images\.values\(\)\)"):  # no sequence
        extract(tiny_extraction(tmp_path / "b", dataset=FromSequence(items={"a": photo()})))


def test_an_iterator_may_yield_the_same_image_again() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 7, 3), dtype=np.uint8)
    buffer, animation = np.empty_like(pixels[0]), io.BytesIO()
    frames = [Image.fromarray(frame) for frame in pixels]
    frames[0].save(animation, "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    def views() -> Iterator[Any]:
        for number, frame in enumerate(pixels):
            buffer[:] = frame
            yield {"image": torch.from_numpy(buffer)} if number else (buffer, 5)

    for items in (views(), ImageSequence.Iterator(Image.open(animation))):
        images = open_dataset(FromSequence(items=items))
        decoded = [np.asarray(decode(images.read(i), Decoding())) for i in range(3)]
        assert np.array_equal(decoded, pixels)


@pytest.mark.parametrize("listed", [False, True])
def test_open_files_are_read_as_often_as_needed(tmp_path: Path, listed: bool) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png_bytes(photo(i)))
    memory = io.BytesIO()
    Image.fromarray(photo(2)).save(memory, "PNG")  # not rewound
    with ExitStack() as files:
        opened = [files.enter_context((tmp_path / f"{i}.png").open("rb")) for i in range(2)]
        items = [*opened, memory]
        images = open_dataset(FromSequence(items=items if listed else iter(items)))
        for _ in range(2):
            for i in range(3):
                pixels = decode(images.read(i), Decoding())
                np.testing.assert_array_equal(np.asarray(pixels), photo(i))


def test_entries_of_a_folder_are_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(photo()))
    images = open_dataset(FromSequence(items=list(os.scandir(tmp_path))))
    assert images.read(0) == png_bytes(photo())


def test_streams_without_a_start_are_read_once() -> None:
    class Stream(io.BytesIO):
        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation("seek")

    images = open_dataset(FromSequence(items=[Stream(png_bytes(photo(3)))]))
    np.testing.assert_array_equal(np.asarray(decode(images.read(0), Decoding())), photo(3))


def test_an_iterable_dataset_with_a_length_is_iterated() -> None:
    class Streamed(torch.utils.data.IterableDataset[Image.Image]):
        def __iter__(self) -> Iterator[Image.Image]:
            yield photo()

        def __len__(self) -> int:
            return 1

    images = open_dataset(FromSequence(items=Streamed()))
    assert np.array_equal(np.asarray(images.read(0)), np.asarray(photo()))


def test_rows_of_pandas_are_in_their_order(tmp_path: Path) -> None:
    """Also of a table that was shuffled or filtered, whose index is not 0, 1, 2, …."""
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png_bytes(photo(i)))
    table = pd.DataFrame(
        {"image": [str(tmp_path / f"{i}.png") for i in range(4)], "label": list("abab")}
    ).iloc[[2, 0, 3]]
    ids = table.index.map(str)
    for items in (table, table["image"]):
        images = open_dataset(FromSequence(items=items, ids=ids))
        assert [sample.id for sample in images.samples] == ["2", "0", "3"]
        for row, seed in enumerate((2, 0, 3)):
            assert images.read(row) == png_bytes(photo(seed))
        names = [sample.label_name for sample in images.samples]
        assert names == (["a", "a", "b"] if items is table else [""] * 3)


@pytest.mark.parametrize("items", ["photo.png", png_bytes(photo()), photo(), torch.zeros(9, 8, 4)])
def test_one_image_is_no_sequence(items: Any) -> None:
    """Its rows or characters would be the images."""
    with pytest.raises(ConfigError, match=r"a single image, path or file; use items=\[…\]"):
        open_dataset(FromSequence(items=items))


def test_what_yields_batches_or_has_no_length_is_named() -> None:
    class Endless(torch.utils.data.Dataset[np.ndarray]):
        def __getitem__(self, index: int) -> np.ndarray:
            return photo(index)

    rows = torch.utils.data.Subset(Endless(), [2, 0])
    with pytest.raises(ConfigError, match=r"yields batches; use its \.dataset"):
        open_dataset(FromSequence(items=torch.utils.data.DataLoader(rows, batch_size=3)))
    images = open_dataset(FromSequence(items=torch.utils.data.DataLoader(rows, batch_size=None)))
    np.testing.assert_array_equal(images.read(0), photo(2))
    with pytest.raises(ConfigError, match="Endless has no length; define __len__"):
        open_dataset(FromSequence(items=Endless()))


def test_tar_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(ConfigError, match="not a readable uncompressed tar"):
        open_dataset(WebDataset(shards=(str(tmp_path / "a.tar"),)))
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(
        ConfigError, match=r"no images in .*a\.tar; no member is named like key\.jpg$"
    ):
        open_dataset(WebDataset(shards=(str(tmp_path / "a.tar"),)))
    with pytest.raises(ConfigError, match="no file matches"):
        open_dataset(WebDataset(shards=(str(tmp_path / "b.tar"),)))
    with pytest.raises(ConfigError, match="no tar files are set"):
        open_dataset(WebDataset())


class Lazy:
    """Pixels that are no NumPy array yet, as those of Dask, xarray and JAX."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.pixels.astype(dtype or np.uint8)


def test_the_adapter_takes_what_datasets_yield() -> None:
    array = photo()
    for value in (
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        array.astype(np.float64) / 255,
        np.ma.masked_array(array),
        array.astype(int),
        array.astype(">i8"),
        Lazy(array),
        torch.from_numpy(array / 255).bfloat16(),
        Image.fromarray(array),
        {"bytes": png_bytes(array), "path": None},
        png_bytes(array),
    ):
        np.testing.assert_array_equal(np.asarray(decode(as_image(value), Decoding())), array)
    for wrong, text in (
        (array.astype(np.int32), "int32"),
        (array.astype(int) - 1, "integers from -1 to 254"),
        (array - 0.5, "not normalised"),
        (3, "int is not an image"),
        (np.ma.masked_less(array, 9), "masked pixels; fill them"),
    ):
        with pytest.raises(SampleError, match=text):
            as_image(wrong)
    assert as_label(np.int64(3)) == (3, "")
    assert as_label(torch.tensor(4)) == (4, "")
    assert as_label("7") == (7, "")
    assert as_label("cat") == (-1, "cat")
    assert as_label({"boxes": 1}) == (-1, "")


def test_the_jobs_of_a_sweep_read_a_dataset_once_to_tell_it_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{name}\udcff.png" for name in "ab"]  # no valid Unicode
    for path in paths:
        path.write_bytes(path.name[:1].encode())
    read: list[Path] = []

    def counted(path: Path) -> bytes:
        read.append(path)
        return path.read_bytes()

    monkeypatch.setattr(files, "read_regular", counted)
    monkeypatch.setattr(files, "_SETTLED", 10**18)
    fresh = [files.files_digest(paths) for _ in range(2)]
    assert (len(set(fresh)), len(read)) == (1, 4)  # just written: they may change unseen
    monkeypatch.setattr(files, "_SETTLED", 0)
    assert {files.files_digest(paths) for _ in range(3)} == {fresh[0]}
    assert len(read) == 6
    assert files.files_digest(paths[::-1]) != fresh[0]
    paths[1].write_bytes(b"other")
    assert files.files_digest(paths) != fresh[0]


@pytest.mark.parametrize("struct", [False, True])
def test_encoded_images_in_parquet_columns(
    struct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    pixels = photo(0, (12, 10))
    content = png_bytes(pixels)
    image = [{"bytes": content, "path": "x.png"} if struct else content]
    (tmp_path / "data").mkdir()
    columns = {"image": image, "number": [4], "list": [[1, 2]]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "data" / "train.parquet")
    name = str(tmp_path / "data")
    images = open_dataset(HuggingFaceDataset(name=name, label_column="number"))
    np.testing.assert_array_equal(np.asarray(decode(images.read(0), Decoding())), pixels)
    assert images.samples[0].label == 4
    with pytest.raises(ConfigError, match=r"image_column: 'number' of .* cannot"):
        open_dataset(HuggingFaceDataset(name=name, image_column="number"))
    with pytest.raises(ConfigError, match=r"label_column: the column 'list' of .* no labels, but"):
        open_dataset(HuggingFaceDataset(name=name, label_column="list"))
    with pytest.raises(ConfigError, match=r"dataset\.arguments: .*IterableDataset.* streaming"):
        open_dataset(HuggingFaceDataset(name=name, arguments={"streaming": True}))


@pytest.mark.parametrize(
    ("kind", "scale", "expected"),
    [
        (datasets.Array3D((10, 12, 3), "uint8"), 1, None),
        (datasets.Array3D((10, 12, 3), "float32"), 1 / 255, None),
        ([[[datasets.Value("int32")]]], 1, None),
        (datasets.Array3D((10, 12, 3), "uint16"), 257, "an image has integers from 0 to 65535"),
        (datasets.Array3D((10, 12, 3), "int16"), -1, "an image has integers from -255 to 0"),
    ],
)
def test_arrays_in_columns(tmp_path: Path, kind: Any, scale: float, expected: str | None) -> None:
    """`datasets` itself would keep the low byte of larger integers."""
    pixels = photo(0, (12, 10))
    pixels[0, 0] = 0, 255, 255
    columns = {"image": [(pixels.astype(np.int64) * scale).tolist()]}
    data = datasets.Dataset.from_dict(columns, datasets.Features({"image": kind}))
    data.save_to_disk(tmp_path / "data")
    images = open_dataset(HuggingFaceDataset(name=str(tmp_path / "data")))
    if expected:
        with pytest.raises(SampleError, match=expected):
            images.read(0)
        return
    np.testing.assert_array_equal(np.asarray(decode(images.read(0), Decoding())), pixels)


def test_a_damaged_table_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "table.json").write_text('[{"image": ')
    with pytest.raises(ConfigError, match=r"could not be loaded: (ArrowInvalid|ValueError): ."):
        open_dataset(HuggingFaceDataset(name=str(tmp_path / "table.json")))


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet", "xlsx"])
def test_tables_that_are_no_csv_files(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "a.png").write_bytes(png_bytes(photo()))
    row = {"file": str(tmp_path / "a.png"), "label": "cat"}
    path = tmp_path / f"table.{ending}"
    if ending == "parquet":
        datasets.Dataset.from_list([row]).to_parquet(path)
    else:
        path.write_text(json.dumps(row if ending == "jsonl" else [row]))
    with pytest.raises(ConfigError, match=rf"not a CSV file; .*JSON and .* dataset.name={path} "):
        open_dataset(CsvFile(path=str(path)))
    source = HuggingFaceDataset(name=str(path), image_column="file")
    if ending == "xlsx":
        with pytest.raises(ConfigError, match=r"could not be loaded: .* supported extension"):
            open_dataset(source)
        return
    images = open_dataset(source)
    np.testing.assert_array_equal(decode(images.read(0), Decoding()), photo())
    assert [(s.id, s.label_name) for s in images.samples] == [("train-000000", "cat")]


def test_the_usual_columns_come_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    contents = [png_bytes(photo(i)) for i in range(3)]
    picture, kinds = datasets.Image(), datasets.ClassLabel(names=["a", "b"])
    lists = [datasets.Value("int64")]

    def saved(number: int, *columns: tuple[str, Any, Any]) -> HuggingFaceDataset:
        data = {
            name: [{"bytes": value, "path": None} if kind is picture else value]
            for name, kind, value in columns
        }
        features = datasets.Features({name: kind for name, kind, _ in columns})
        datasets.Dataset.from_dict(data, features).save_to_disk(tmp_path / str(number))
        return HuggingFaceDataset(name=str(tmp_path / str(number)))

    mask, image = ("mask", picture, contents[0]), ("image", picture, contents[1])
    other, label = ("source", kinds, 0), ("label", datasets.Value("int64"), 5)
    for number, (columns, found) in enumerate([
        ((mask, image), (-1, "")), ((other, image, label), (5, "")), ((other, image), (0, "a")),
        ((image, ("label", picture, contents[2])), (-1, "")),
    ]):  # fmt: skip
        images = open_dataset(saved(number, *columns))
        assert images.read(0) == contents[1]
        assert [(sample.label, sample.label_name) for sample in images.samples] == [found]
    assert not caplog.messages
    open_dataset(saved(8, image, ("label", lists, [0, 1])))
    assert "labels: none is a number or a name" in caplog.text
    with pytest.raises(ConfigError, match=r"several image columns; choose from: left, right"):
        open_dataset(saved(9, *((name, picture, contents[0]) for name in ("left", "right"))))


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_a_saved_format_does_not_matter(tmp_path: Path, kind: str) -> None:
    """`save_to_disk` also saves what `with_format` has set."""
    content = png_bytes(photo())
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    columns = {"image": [{"bytes": content, "path": None}], "label": ["cat"]}
    data = datasets.Dataset.from_dict(columns, features)
    data.with_format(kind, columns=["label"]).save_to_disk(tmp_path / "data")
    images = open_dataset(HuggingFaceDataset(name=str(tmp_path / "data")))
    assert images.read(0) == content
    assert [(s.label, s.label_name) for s in images.samples] == [(0, "cat")]


@pytest.mark.parametrize(
    ("folder", "split", "rows"),
    [
        ("one", "", {"train": [0, 1, 2]}),
        ("one", "train[1:]", {"train[1:]": [1, 2]}),
        ("test", "", {"test": [2, 3]}),
        ("both", "", {"train": [0, 1, 2]}),
        ("both", "test", {"test": [3, 4]}),
        ("both", "test[:50%]+train", {"test[:50%]+train": [3, 0, 1, 2]}),
        ("both/test", "", {"test": [3, 4]}),
        ("one", "train[2:1]", r"dataset\.split: .* has no rows in train\[2:1\]"),
        (
            "both",
            "valid",
            r"dataset\.split: Unknown split .valid.\. Should be one of \[.train., .test.\]",
        ),
        ("test", "train", "Unknown split"),
        ("both", "tr ain[", "dataset.split: Unrecognized instruction"),
    ],
)
def test_folders_of_save_to_disk(
    tmp_path: Path, folder: str, split: str, rows: dict[str, list[int]] | str
) -> None:
    pictures = [png_bytes(photo(i, (12, 10))) for i in range(5)]

    def saved(first: int, last: int, name: str | None = None) -> datasets.Dataset:
        features = datasets.Features(
            {"label": datasets.ClassLabel(names=list("abcde")), "picture": datasets.Image()}
        )
        columns = {
            "label": list(range(first, last)),
            "picture": [{"bytes": pictures[i], "path": None} for i in range(first, last)],
        }
        split = datasets.NamedSplit(name) if name else None
        return datasets.Dataset.from_dict(columns, features, split=split)

    if folder == "one":
        saved(0, 3).save_to_disk(tmp_path / "one")
    elif folder == "test":
        saved(2, 4, "test").save_to_disk(tmp_path / "test")
    else:
        both = datasets.DatasetDict(train=saved(0, 3, "train"), test=saved(3, 5, "test"))
        both.save_to_disk(tmp_path / "both")
    source = HuggingFaceDataset(name=str(tmp_path / folder), split=split)
    if isinstance(rows, str):
        with pytest.raises(ConfigError, match=rows):
            open_dataset(source)
        return
    images = open_dataset(source)
    ((name, expected),) = rows.items()
    assert [s.id for s in images.samples] == [f"{name}-{i:06d}" for i in range(len(expected))]
    assert [(s.label, s.label_name) for s in images.samples] == [(i, "abcde"[i]) for i in expected]
    assert [images.read(i) for i in range(len(expected))] == [pictures[i] for i in expected]
