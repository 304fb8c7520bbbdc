"""Labels: integers keep their value in every dataset, all others are names, none collide."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.common.errors import ConfigError
from pipeline.datasets.adapter import as_label, numbered
from pipeline.datasets.base import ImageDataset, open_dataset
from pipeline.datasets.csv import CsvFile
from pipeline.datasets.huggingface import HuggingFaceDataset
from pipeline.datasets.samples import Sample
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.torchvision import TorchvisionDataset
from pipeline.datasets.webdataset import WebDataset
from tests.conftest import photo

PHOTO = Image.fromarray(photo())


def labels_of(dataset: ImageDataset) -> list[tuple[int, str]]:
    return [(sample.label, sample.label_name) for sample in open_dataset(dataset).samples]


@pytest.mark.parametrize("value", [
    3, 3.0, "3", " 3", "3.0", "+3", "3.", b"3\n", Decimal(3), np.int8(3), np.uint64(3),
    np.float16(3), np.array(3), np.array([3.0]), torch.tensor(3), torch.tensor([3.0]), np.str_("3"),
    torch.tensor(3.0, requires_grad=True),
])  # fmt: skip
def test_an_integer_is_itself_whatever_it_is_stored_as(value: Any) -> None:
    assert as_label(value) == (3, "")


@pytest.mark.parametrize("value", [
    -1, -1.0, "-1", "-1.0", "", "  ", None, float("nan"), "nan", " NaN", np.nan, torch.tensor(-1),
    np.array([1, 2]), torch.zeros(0), {"boxes": 1}, (1, 2), b"", pd.NaT, pd.NA,
])  # fmt: skip
def test_what_means_unlabelled(value: Any) -> None:
    assert as_label(value) == (-1, "")


@pytest.mark.parametrize(("value", "name"), [
    (0.5, "0.5"), ("0.5", "0.5"), (10**20, str(10**20)), ("1" + "0" * 20, "1" + "0" * 20),
    (2**63, str(2**63)), ("1e3", "1e3"), ("nana", "nana"), ("²", "²"), ("1_000", "1_000"),
    (float("inf"), "inf"), (" cat ", "cat"), ("3 4", "3 4"), ("--1", "--1"),
    (dt.date(2020, 1, 2), "2020-01-02"), (dt.time(9, 30), "09:30:00"),
    (dt.timedelta(hours=2), "2:00:00"),
])  # fmt: skip
def test_other_numbers_and_texts_are_names(value: Any, name: str) -> None:
    assert as_label(value) == (-1, name)


def test_the_ends_of_64_bits_are_kept() -> None:
    for number in (0, -2, 2**63 - 1, -(2**63)):
        assert as_label(number) == as_label(str(number)) == (number, "")


@pytest.mark.parametrize("values", [
    ["0", "cat", "1", "dog"], [0.5, 1.0, 0.0, 1.5], ["2", "b", "a", "b", "0", "-1"],
    [10**20, 2**63 - 1, 0], ["cat", "dog", "", "-2", "5"],
])  # fmt: skip
def test_mixed_labels_never_collide_and_integers_keep_their_value(values: list[Any]) -> None:
    found = numbered(values)
    labelled = [str(v).removesuffix(".0") for v in values if str(v) not in ("", "-1")]
    assert len({number for number, _ in found} - {-1}) == len(set(labelled))
    for value, (number, name) in zip(values, found, strict=True):
        if as_label(value)[1]:
            assert number >= 0
            assert name == as_label(value)[1]
        else:
            assert number == as_label(value)[0]


def write_csv(folder: Path, content: str | bytes) -> CsvFile:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "list.csv").write_bytes(data)
    return CsvFile(path=str(folder / "list.csv"))


@pytest.mark.parametrize(("cells", "expected"), [
    (["0.0", "1.0", "10.0"], [0, 1, 10]),
    (["-1", "0", ""], [-1, 0, -1]),
    ([" 0", " 7", "12 "], [0, 7, 12]),
    (["0", "cat", "1", "dog"], [0, 2, 1, 3]),
    (["b", "", "a"], [1, -1, 0]),
    (["100000000000000000000", "5"], [0, 5]),
])  # fmt: skip
def test_csv(cells: list[str], expected: list[int], tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{cell}\n" for i, cell in enumerate(cells))
    found = labels_of(write_csv(tmp_path, "path, label\n" + rows))
    assert [number for number, _ in found] == expected
    names = [cell.strip() for cell in cells]
    for name, (_, label_name) in zip(names, found, strict=True):
        assert label_name == (name if as_label(name)[1] else "")


def test_names_that_look_the_same_have_one_number(tmp_path: Path) -> None:
    dataset = write_csv(tmp_path, "path,label\na.png,\u00e9\nb.png,a\nc.png,e\u0301\n")
    assert labels_of(dataset) == [(1, "\u00e9"), (0, "a"), (1, "\u00e9")]
    items = [(PHOTO, "e\u0301"), (PHOTO, "\u00e9")]
    assert labels_of(FromSequence(items=items)) == [(0, "\u00e9")] * 2


@pytest.mark.parametrize("encoding", [
    "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252",
])  # fmt: skip
def test_a_csv_file_of_any_usual_encoding(encoding: str, tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "Bär.png")
    dataset = write_csv(tmp_path, "path,label\nBär.png,Größe\n".encode(encoding))
    images = open_dataset(dataset)
    assert [(s.id, s.label, s.label_name) for s in images.samples] == [("Bär.png", 0, "Größe")]
    assert images.read(0) == (tmp_path / "Bär.png").read_bytes()


def test_an_encoding_that_is_named_or_does_not_exist(tmp_path: Path) -> None:
    write_csv(tmp_path, "path,label\na.png,Größe\n".encode("cp850"))
    path = str(tmp_path / "list.csv")
    assert labels_of(CsvFile(path=path, encoding="cp850")) == [(0, "Größe")]
    with pytest.raises(ConfigError, match=r"dataset\.encoding: unknown encoding: cp85"):
        open_dataset(CsvFile(path=path, encoding="cp85"))


def test_a_file_that_is_no_text_is_not_read_as_a_table(tmp_path: Path) -> None:
    compressed = write_csv(tmp_path, gzip.compress(b"path,label\na.png,1\n"))
    with pytest.raises(ConfigError, match=r"list\.csv is not a text file; decompress it"):
        open_dataset(compressed)


def test_csv_headers(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "a.png")
    spaced = open_dataset(write_csv(tmp_path, " label , id, path\n1, x, a.png\n"))
    assert [(s.id, s.label) for s in spaced.samples] == [("x", 1)]
    assert spaced.read(0) == (tmp_path / "a.png").read_bytes()
    with pytest.raises(ConfigError, match="several columns 'label'"):
        open_dataset(write_csv(tmp_path, "path,label,label\na.png,1,2\n"))
    with pytest.raises(ConfigError, match=r"set dataset\.delimiter=';'"):
        open_dataset(write_csv(tmp_path, "path;label\na.png;1\n"))
    tabs = write_csv(tmp_path, "path\tlabel\na.png\t1\n")
    with pytest.raises(ConfigError, match=r"set dataset\.delimiter='\\t'"):
        open_dataset(tabs)
    assert labels_of(CsvFile(path=tabs.path, delimiter=r"\t")) == [(1, "")]
    with pytest.raises(ConfigError, match="delimiter: must be one character, got ';;'"):
        CsvFile(path=tabs.path, delimiter=";;")


def test_quotes_after_a_space(tmp_path: Path) -> None:
    table = '"path", "label"\na.png, "cat, small"\n"b.png",  "dog"\nc.png, dog\n'
    images = open_dataset(write_csv(tmp_path, table))
    assert [(s.id, s.label, s.label_name) for s in images.samples] == [
        ("a.png", 0, "cat, small"), ("b.png", 1, "dog"), ("c.png", 1, "dog"),
    ]  # fmt: skip


def test_labels_in_a_column_of_another_name_are_missed_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (sample,) = open_dataset(write_csv(tmp_path, "path,Label\na.png,3\n")).samples
    assert sample.label == -1
    (message,) = caplog.messages
    assert message.endswith(
        "list.csv has no column 'label', so images have none; did you mean Label?"
    )
    for table in ("path,id\na.png,x\n", "path,label,more\na.png,3,4\n"):
        caplog.clear()
        open_dataset(write_csv(tmp_path, table))
        assert not caplog.messages


@pytest.mark.parametrize(("values", "expected"), [
    ([1.0, 10.0], [(1, ""), (10, "")]),
    ([np.float32(2), np.array([4])], [(2, ""), (4, "")]),
    ([torch.tensor(3.0), torch.tensor(-1)], [(3, ""), (-1, "")]),
    ([0, "cat"], [(0, ""), (1, "cat")]),
    ([10**20, 0.25], [(1, str(10**20)), (0, "0.25")]),
])  # fmt: skip
def test_sequences(values: list[Any], expected: list[tuple[int, str]]) -> None:
    assert labels_of(FromSequence(items=[(PHOTO, value) for value in values])) == expected
    items = [{"image": PHOTO, "label": value} for value in values]
    assert labels_of(FromSequence(items=items)) == expected


@pytest.mark.parametrize("value", [torch.eye(3)[1], [{"bbox": [1, 2]}], PHOTO, object()])
def test_labels_that_are_no_classes_are_missed_aloud(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    items = [(PHOTO, None), (PHOTO, value)]
    assert labels_of(FromSequence(items=items)) == [(-1, "")] * 2
    (message,) = caplog.messages
    assert message.startswith("labels: none is a number or a name, so samples have none; the first")
    caplog.clear()
    for others in ([None, None], ["", -1], [value, 5], [float("nan"), None]):
        labels_of(FromSequence(items=[(PHOTO, other) for other in others]))
    assert not caplog.messages


@pytest.mark.parametrize(("name", "feature", "values", "expected"), [
    ("label", datasets.Value("int64"), [3, -1, 10], [(3, ""), (-1, ""), (10, "")]),
    ("label", datasets.Value("float32"), [3.0, None, 0.0], [(3, ""), (-1, ""), (0, "")]),
    ("target", datasets.Value("string"), ["b", "a", "7"], [(1, "b"), (0, "a"), (7, "")]),
    ("target", datasets.Value("date32"), [dt.date(2020, 1, 2), None, dt.date(2019, 5, 6)],
     [(1, "2020-01-02"), (-1, ""), (0, "2019-05-06")]),
    ("kind", datasets.ClassLabel(names=["cat", "dog"]), [1, -1, 0],
     [(1, "dog"), (-1, ""), (0, "cat")]),
])  # fmt: skip
def test_hugging_face_columns(
    name: str, feature: Any, values: list[Any], expected: list[tuple[int, str]],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    buffer = io.BytesIO()
    PHOTO.save(buffer, "PNG")
    images = [{"bytes": buffer.getvalue(), "path": None}] * len(values)
    columns = datasets.Features({"image": datasets.Image(), name: feature})
    data = datasets.Dataset.from_dict({"image": images, name: values}, features=columns)
    data.to_parquet(str(tmp_path / "train.parquet"))
    arguments = {"data_files": str(tmp_path / "train.parquet")}
    found = HuggingFaceDataset(name="parquet", arguments=arguments)
    assert labels_of(found) == expected
    assert labels_of(
        HuggingFaceDataset(name="parquet", label_column=name, arguments=arguments)
    ) == (expected)


def test_webdataset_labels(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    PHOTO.save(buffer, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        texts = (
            b"3.0", b" 12\n", b"-1", b"", b"cat", b'{"label": 5.0}', b'{"class": 6}',
            b'\xef\xbb\xbf{"cls": 7}', b"\xef\xbb\xbf8", b'{"width": 9}',
        )  # fmt: skip
        for i, text in enumerate(texts):
            files = [("png", buffer.getvalue()), ("json" if b"{" in text else "cls", text)]
            files += [("txt", b"a cat")] * (b"{" in text)  # a caption
            for ending, content in files:
                member = tarfile.TarInfo(f"k{i}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    found = labels_of(WebDataset(shards=(str(tmp_path / "a.tar"),)))
    assert found == [(3, ""), (12, ""), (-1, ""), (-1, ""), (1, "cat"), (5, ""),
                     (6, ""), (7, ""), (8, ""), (0, "a cat")]  # fmt: skip


@pytest.mark.parametrize(("targets", "expected"), [
    ([5, 0], [(5, ""), (0, "airplane")]),
    (np.array([5.0, -1.0]), [(5, ""), (-1, "")]),
    (torch.tensor([1, 2]), [(1, "car"), (2, "")]),
])  # fmt: skip
def test_torchvision_targets(
    targets: Any, expected: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        def __init__(self) -> None:
            self.targets, self.classes = targets, ["airplane", "car"]

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return PHOTO, self.targets[index]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Two)
    assert labels_of(TorchvisionDataset(name="CIFAR10")) == expected


def test_labels_of_qmnist(tmp_path: Path) -> None:
    """Its `targets` have eight columns; the label is the first."""
    raw = tmp_path / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    targets = (np.arange(24).reshape(3, 8) % 10).astype(">i4")
    for name, kind, array in (
        ("images-idx3-ubyte", 8, np.zeros((3, 28, 28), np.uint8)),
        ("labels-idx2-int", 12, targets),
    ):
        head = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        (raw / f"qmnist-train-{name}").write_bytes(head + array.tobytes())
    found = labels_of(TorchvisionDataset(name="QMNIST", root=str(tmp_path)))
    assert found == [(0, "0 - zero"), (8, "8 - eight"), (6, "6 - six")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # unclosed files
def test_names_of_caltechs_categories(tmp_path: Path) -> None:
    for number, name in enumerate(("001.ak47", "002.zoo")):
        folder = tmp_path / "caltech256" / "256_ObjectCategories" / name
        folder.mkdir(parents=True)
        PHOTO.save(folder / f"00{number + 1}_0001.jpg")
    found = labels_of(TorchvisionDataset(name="Caltech256", root=str(tmp_path)))
    assert found == [(0, "001.ak47"), (1, "002.zoo")]


@pytest.mark.parametrize(("kind", "expected"), [
    ("category", [(0, "Bengal"), (1, "Persian"), (2, "Pug")]),
    ("binary-category", [(0, ""), (0, ""), (1, "")]),
    ("segmentation", [(0, "Bengal"), (1, "Persian"), (2, "Pug")]),
])  # fmt: skip
def test_labels_of_a_chosen_kind(
    kind: str, expected: list[tuple[int, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    (folder / "images").mkdir()
    lines = {"Bengal_1": "1 1 1", "Persian_1": "2 1 1", "Pug_1": "3 2 1"}
    (folder / "annotations" / "trainval.txt").write_text(
        "".join(f"{name} {numbers}\n" for name, numbers in lines.items())
    )
    for name in lines:
        PHOTO.save(folder / "images" / f"{name}.jpg")
        PHOTO.save(folder / "annotations" / "trimaps" / f"{name}.png")
    arguments = {"target_types": kind}
    source = TorchvisionDataset(name="OxfordIIITPet", root=str(tmp_path), arguments=arguments)
    assert labels_of(source) == expected


def test_a_plug_ins_label_that_cannot_be_stored_is_refused_at_once() -> None:
    for label in (10**20, 0.5, "cat"):
        with pytest.raises(ConfigError, match=r"sample 'a' has label .*64-bit integer"):
            Sample(id="a", label=label)  # type: ignore[arg-type]
