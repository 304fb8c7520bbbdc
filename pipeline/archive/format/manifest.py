"""The manifest describes an archive's content; it is written first and never modified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.archive.format import schema
from pipeline.archive.format.layer_entry import LayerEntry, RowDataset
from pipeline.common.atomic_files import create
from pipeline.common.configured import Natural
from pipeline.common.errors import ArchiveError, one_line
from pipeline.common.places import Place, local, mapped

_BLOCK = 16 * 2**20
FULL = "full"
"""The pixels of the inputs are stored."""
JPEG = "jpeg"
"""The inputs are stored as JPEG."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of manifest.json; see `pipeline.archive.format.schema`.

    Attributes:
        identity: everything that affects the values, as plain nested values; its digest is the
            fingerprint.
        config: resolved configuration.
        command: command line.
        created: UTC, ISO 8601.
        samples: ordered ids.
        layers: in execution order.
        image_shape: channel, height, width of the inputs.
        inputs: storage of the input pixels: `full`, `jpeg` or `none`.
        mean, std: normalisation of the inputs.
        shards: half-open ranges of rows.
        environment: versions and hardware.
        previous_fingerprints: fingerprint and number of samples of each earlier, smaller version
            of the archive; shards written then carry these fingerprints.
    """

    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    command: Sequence[str]
    created: str
    samples: Sequence[str]
    layers: Sequence[LayerEntry]
    image_shape: tuple[Natural, Natural, Natural]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shards: Sequence[tuple[int, int]]
    environment: Mapping[str, Any]
    previous_fingerprints: Sequence[tuple[str, int]] = ()
    inputs: Annotated[str, Field(pattern="^(full|jpeg|none)$")] = FULL

    @property
    def model_name(self) -> str:
        """Name of the model in its configuration."""
        return str(self._model_settings.get("name", "model"))

    @property
    def derived_from(self) -> dict[str, str]:
        """Origin of rows that `add_layer` wrote: `archive` (path), `fingerprint` and `layer`."""
        origin = self.identity.get("derived_from")
        if not isinstance(origin, Mapping):
            return {}
        fields = {key: str(origin.get(key)) for key in ("fingerprint", "layer")}
        return {"archive": str(self.config.get("derived_from")), **fields}

    @property
    def batch_size(self) -> int:
        """Samples per forward pass; 1 if unknown."""
        size = self.identity.get("batch_size")
        return size if isinstance(size, int) and size > 0 else 1

    @property
    def input_rows(self) -> str:
        """HDF5 path of the input pixels; empty if they are not stored."""
        return {FULL: schema.IMAGE_ROWS, JPEG: schema.JPEG_ROWS}.get(self.inputs, "")

    @cached_property
    def row_datasets(self) -> dict[str, RowDataset]:
        """HDF5 path → dataset with a row per sample, of a shard or a packed file."""
        shape = tuple(self.image_shape)
        rows = {}
        if self.input_rows:
            rows[self.input_rows] = RowDataset(shape, "uint8", schema.IMAGE_AXES, checked=True)
        for layer in self.layers:
            rows |= layer.row_datasets
        return rows

    @property
    def row_codecs(self) -> dict[str, str]:
        """HDF5 path → codec of the datasets whose rows have checksums."""
        return {name: rows.codec for name, rows in self.row_datasets.items() if rows.checked}

    @property
    def bgr(self) -> bool:
        """Whether the model expects BGR; stored pixels are always RGB."""
        transform = self.identity.get("transform")
        return isinstance(transform, Mapping) and bool(transform.get("bgr"))

    @property
    def model_title(self) -> str:
        """Display name of the model, with notes on random weights and missing samples."""
        notes = self._notes
        return f"{self.model_name} ({'; '.join(notes)})" if notes else self.model_name

    @property
    def weights_title(self) -> str:
        """Weights of the model, or the notes of `model_title`: tells models of one name apart."""
        weights = str(self._model_settings.get("weights", ""))
        return "; ".join(self._notes) or f"weights {Path(weights).name}"

    @property
    def _model_settings(self) -> Mapping[str, Any]:
        model = self.config.get("model")
        return model if isinstance(model, Mapping) else {}

    @property
    def _notes(self) -> list[str]:
        settings, notes = self._model_settings, []
        if settings.get("weights", "") is None:
            notes.append(f"random weights, seed {self.config.get('seed', 0)}")
        elif settings.get("allow_random") and self.identity["model"].get("missing_keys"):
            notes.append(f"partly random weights, seed {self.config.get('seed', 0)}")
        if partial := settings.get("partial"):
            notes.append(f"partial: {partial}")
        return notes

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the identity as canonical JSON."""
        text = json.dumps(self.identity, sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def fingerprint_at(self, row: int) -> str:
        """Return the fingerprint in the shard of a row."""
        previous = (fingerprint for fingerprint, n in self.previous_fingerprints if row < n)
        return next(previous, self.fingerprint)

    def with_shards(self, numbers: Sequence[int]) -> Manifest:
        """Return the manifest of some shards; the model's title states the number of samples."""
        ranges = [self.shards[number] for number in numbers]
        edges = list(accumulate((stop - start for start, stop in ranges), initial=0))
        size = f"{edges[-1]} of {len(self.samples)} samples"
        model = {**self._model_settings, "partial": size}
        return replace(
            self,
            config={**self.config, "model": model},
            samples=[name for start, stop in ranges for name in self.samples[start:stop]],
            shards=list(pairwise(edges)),
            previous_fingerprints=[
                (of, sum(stop - start for start, stop in ranges if start < count))
                for of, count in self.previous_fingerprints
            ],
        )

    def blocks(self, row_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows of about 16 MiB, each within one shard."""
        step = max(1, _BLOCK // max(1, row_bytes))
        for start, stop in self.shards:
            for row in range(start, stop, step):
                yield row, min(row + step, stop)

    def to_json(self, *, samples: bool = True, creation: bool = True) -> str:
        """Return the manifest as JSON text.

        Args:
            samples: whether to include the sample ids.
            creation: whether to include the fields that differ between runs of the same command:
                creation time and archive folder.
        """
        content = {
            "format": schema.FORMAT,
            "format_version": schema.FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "layers": [vars(layer) for layer in self.layers],
        }
        if not samples:
            del content["samples"]
        if not creation:
            del content["created"]
            content["config"] = {k: v for k, v in self.config.items() if k != "archive"}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, where: Place, ids: bool = True) -> Manifest:
        """Parse a manifest; in a packed file, it has no `ids`."""
        try:
            content = json.loads(text)
            if content["format"] != schema.FORMAT:
                raise ArchiveError(f"{where}: not a featuremaps archive")
            if content["format_version"] != schema.FORMAT_VERSION:
                raise ArchiveError(
                    f"{where}: format version {content['format_version']}, but this featuremaps "
                    f"reads version {schema.FORMAT_VERSION}; install the version that wrote it"
                )
            manifest = _parser().validate_python(content | ({} if ids else {"samples": ()}))
            manifest._check(ids=ids)
            written = content["fingerprint"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            cause = f"{type(error).__name__}: {error}"
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                cause = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise ArchiveError(f"{where}: damaged manifest ({one_line(cause)})") from error
        if written != manifest.fingerprint:
            raise ArchiveError(f"{where}: the manifest was modified after it was written")
        return manifest

    def _check(self, *, ids: bool) -> None:
        """Raise ValueError if the layers, or the shards and the ids, do not fit together."""
        for layer in self.layers:
            layer.check()
        if not self.layers or len({layer.name for layer in self.layers}) < len(self.layers):
            raise ValueError("no layers, or two of one name")
        edges = [0, *(stop for _, stop in self.shards)]
        if [*self.shards] != [*pairwise(edges)] or edges != sorted({*edges}):
            raise ValueError("the shards are not contiguous ranges of rows")
        if ids and edges[-1] != len(self.samples):
            raise ValueError(f"{len(self.samples)} ids for {edges[-1]} rows")

    @classmethod
    def read(cls, archive: Place) -> Manifest:
        """Read the manifest of the archive folder `archive`."""
        path = archive / schema.MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            fact = f"not an archive (it contains no {schema.MANIFEST})"
            if (folder := local(archive)) and not folder.exists():
                fact = f"no such {'file' if folder.suffix == '.h5' else 'folder'}"
            raise ArchiveError(f"{archive}: {fact}") from error
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ArchiveError(
                f"{path}: cannot be read ({cause}); check that {archive} is an archive"
            ) from error
        return cls.from_json(text, where=path)

    def write_once(self, archive: Place) -> Manifest:
        """Write the manifest unless there is one; return the existing one."""
        create(archive / schema.MANIFEST, self.to_json().encode())
        return Manifest.read(archive)


@cache
def _parser() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def missing_shards(archive: Place, manifest: Manifest) -> list[int]:
    """Return the numbers of the missing shards."""
    paths = [schema.shard_path(archive, number) for number in range(len(manifest.shards))]
    are_files = mapped(lambda path: path.is_file(), paths, at=archive)
    return [number for number, exists in enumerate(are_files) if not exists]
