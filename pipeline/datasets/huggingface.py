"""Image datasets of Hugging Face `datasets` (install `featuremaps[datasets]`)."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.common.configured import configured
from pipeline.common.errors import ConfigError, known, one_line, reraised, suggestion
from pipeline.common.network import hub_answers_at_once, refuse_remote_code
from pipeline.common.paths import PathText
from pipeline.datasets.adapter import IMAGE_KEYS, LABEL_KEYS, numbered
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.samples import Images
from pipeline.datasets.sequence import SequenceImages, ids, labelled


@configured
class HuggingFaceDataset(ImageDataset):
    """`datasets.load_dataset(name, …)[split]`, or a folder that `save_to_disk` wrote.

    No repository code is run. Images are decoded under this project's policy, not by `datasets`.

    Attributes:
        name: a hub name, a local folder or table (JSON, Parquet), or `imagefolder` with
            `arguments: {data_dir: DIR}`.
        split: e.g. `test`, `train[:100]`; empty: `train`, or the only split of a saved dataset.
        image_column: empty uses the only image column, or `image` or another usual name.
        label_column: empty uses `label` or another usual name, else the first column of class
            labels.
        id_column: column with unique ids; empty numbers the rows.
        arguments: further arguments of `load_dataset`.
    """

    type_key: ClassVar[str] = "huggingface"
    safe_arguments: ClassVar[frozenset[str]] = frozenset(
        ("name", "revision", "data_dir", "data_files")
    )

    name: PathText
    split: str = ""
    image_column: str = ""
    label_column: str = ""
    id_column: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_remote_code(self.arguments)

    def reads(self) -> dict[str, str]:
        paths = {"dataset.name": self.name} if Path(self.name).expanduser().exists() else {}
        for key in ("data_dir", "data_files"):
            for number, path in enumerate(_texts(self.arguments.get(key))):
                paths[f"dataset.arguments.{key}[{number}]"] = path
        return paths

    def fetches(self) -> str:
        return "" if Path(self.name).expanduser().exists() else f"the dataset {self.name}"

    def open(self) -> Images:
        with reraised("dataset", hint="; run: pip install 'featuremaps[datasets]'"):
            import datasets
        try:
            with hub_answers_at_once():
                data, split = self._load()
        except ConfigError:
            raise
        except Exception as error:
            generic = isinstance(error, datasets.exceptions.DatasetGenerationError)
            cause = (generic and error.__cause__) or error
            raise ConfigError(
                f"dataset.name: {self.name} ({self.split or 'train'}) could not be loaded: "
                f"{type(cause).__name__}: {one_line(cause, limit=200)}"
            ) from error
        if not isinstance(data, datasets.Dataset):
            raise ConfigError(
                f"dataset.arguments: {self.name} loads as {type(data).__name__}, whose rows cannot "
                "be read in any order; remove streaming"
            )
        if not len(data):
            raise ConfigError(f"dataset.split: {self.name} has no rows in {split}")
        data = data.with_format(None)  # a saved one may leave columns out
        kinds = {name: type(feature) for name, feature in data.features.items()}
        pictures = [name for name, kind in kinds.items() if kind is datasets.Image]
        usual = [key for key in IMAGE_KEYS if key in (pictures or kinds)]
        image = self._column(data, "image_column")
        if not image and (usual or len(pictures) == 1):
            image = (usual or pictures)[0]
        if not image:
            count = "several image columns" if pictures else "no image column"
            raise ConfigError(
                f"dataset.image_column: {self.name} has {count}; "
                f"{suggestion('image', pictures or data.column_names)}"
            )
        with reraised(f"dataset.image_column: {image!r} of {self.name} cannot be read as images"):
            if isinstance(data.features[image], (datasets.Image, datasets.Value, Mapping)):
                data = data.cast_column(image, datasets.Image(decode=False))
            else:  # arrays, which a cast would reduce to their low bytes
                data = data.with_format("numpy", columns=[image], output_all_columns=True)
        usual = [key for key in LABEL_KEYS if kinds.get(key, datasets.Image) is not datasets.Image]
        usual += [name for name, kind in kinds.items() if kind is datasets.ClassLabel]
        label = self._column(data, "label_column") or next(iter(usual), "")
        if "string" not in str(getattr(data.features.get(label), "dtype", "")):
            # Numbering names requires all of them.
            data = data.select(range(len(data))[: self.limit])
        labels = numbered(list(data[label]) if label else [None] * len(data))
        key = self._column(data, "id_column")
        for column, kind in ((self.label_column, "label"), (key, "id")):
            feature = data.features.get(column)
            if column and not isinstance(feature, (datasets.ClassLabel, datasets.Value)):
                raise ConfigError(
                    f"dataset.{kind}_column: the column {column!r} of {self.name} holds no "
                    f"{kind}s, but {one_line(feature, limit=80)}"
                )
        feature = data.features.get(label)
        if isinstance(feature, datasets.ClassLabel):
            labels = [(n, feature.int2str(n) if n >= 0 else "") for n, _ in labels]
        names: list[Any] = list(data[key]) if key else ids(split, len(data))
        if None in names:
            raise ConfigError(
                f"dataset.id_column: {key!r} has no value in row {names.index(None)}; use another "
                "column, or none to number the rows"
            )
        return SequenceImages(labelled(labels, [str(name) for name in names]), data, image)

    def _load(self) -> tuple[Any, str]:
        import datasets

        folder = Path(self.name).expanduser()
        saved_files = {"state.json", "dataset_info.json"}, {"dataset_dict.json"}
        if not any(all((folder / name).is_file() for name in names) for names in saved_files):
            name, split = str(folder) if folder.exists() else self.name, self.split or "train"
            arguments = self.arguments
            if folder.is_file():
                name, arguments = str(folder.parent), {"data_files": folder.name, **arguments}
            return datasets.load_dataset(name, split=split, **arguments), split
        saved = datasets.load_from_disk(str(folder), **self.arguments)
        if not isinstance(saved, Mapping):
            saved = {str(saved.split or "train"): saved}
        split = self.split or (next(iter(saved)) if len(saved) == 1 else "train")
        rows = {name: len(data) for name, data in saved.items()}
        with reraised("dataset.split"):
            parts = datasets.ReadInstruction.from_spec(split).to_absolute(rows)
        selected = [saved[part.splitname].select(range(part.from_, part.to)) for part in parts]
        return datasets.concatenate_datasets(selected), split

    def _column(self, data: Any, key: str) -> str:
        names = ["", *data.column_names]
        return known(getattr(self, key), names, f"dataset.{key}: {self.name} has no column")


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return [] if value is None else [str(value)]
