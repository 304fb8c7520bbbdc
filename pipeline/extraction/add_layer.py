"""Derived layers: rows computed from an archive's activations, as a new archive beside it."""

import datetime as dt
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from pipeline.archive.format import schema
from pipeline.archive.format.codec import Codec
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.manifest import FULL, JPEG, Manifest
from pipeline.archive.format.row_ranges import shard_ranges
from pipeline.archive.format.stored_type import encode
from pipeline.archive.reading.archive import Archive
from pipeline.archive.writing import lock
from pipeline.archive.writing.archive_writer import ArchiveWriter
from pipeline.archive.writing.shard_writer import ActivationBatch
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, member, one_line
from pipeline.common.places import Place, local, place, with_options
from pipeline.extraction.derived_rows import RowBlock, row_blocks
from pipeline.extraction.model_fingerprint import fingerprint_of
from pipeline.extraction.plan import MOST_SHARDS, SHARD_BYTES
from pipeline.extraction.statistics import arguments, of_batch
from pipeline.rendering.file_names import folder_name

_AXES: Sequence[tuple[str, ...]] = (
    ("channel",),
    ("token", "channel"),
    ("channel", "height", "width"),
)


def add_layer(
    archive: Archive | str | Place,
    name: str,
    rows: Any,
    *,
    like: str | None = None,
    to: str | Place | None = None,
    codec: str = "none",
    storage_options: Mapping[str, str] | None = None,
) -> Place:
    """Write activations derived from an archive's (codes, logits, masks) as a layer of a new one.

    The new archive has the samples, labels and inputs of the first and opens without it; its
    manifest names the first (`derived_from`). An archive that could not be finished is removed; if
    the process was killed, by the next call.

    Args:
        archive: the archive, its folder, a packed file, or a URL of one.
        name: of the new layer.
        rows: values of all stored samples, in the archive's order: an array `(sample, …)` (rows of
            skipped samples may be included), or an iterable of batches `(sample, …)`. Arrays of
            NumPy, torch (any device, sparse too) and anything that slices like one. float16 and
            bfloat16 are stored as they are, other numbers and booleans as float32.
        like: layer with the same positions; by default any layer of the archive whose positions
            fit. Its axes, token grid and prefix tokens are kept; rows `(token, channel)` may leave
            prefix tokens out, or flatten its maps.
        to: the new archive; by default the archive's name and the layer's, beside the archive.
        codec: `none`, `gzip` or `zstd`; sparse codes shrink to a few percent of their size.
        storage_options: of `archive` and `to`; see `Archive.open`.

    Returns:
        The new archive.

    Raises:
        ConfigError: when the rows do not match the samples or positions, or `to` exists.
        ArchiveError, DiskFullError: when reading or writing fails.
    """
    if not (isinstance(name, str) and name and name.isprintable()):
        raise ConfigError(f"name: {one_line(repr(name), limit=80)} is not a printable name")
    member(Codec, codec, "codec: unknown codec")
    where = archive.path if isinstance(archive, Archive) else archive
    with Archive.open(with_options(place(where), storage_options or {})) as source:
        source_name = source.path.stem if source.path.suffix == ".h5" else source.path.name
        beside = source.path.with_name(f"{source_name}-{folder_name(name)}")
        path = with_options(place(to or beside), storage_options or {})
        stored = np.flatnonzero(source.stored)
        blocks = row_blocks(rows, source)
        first = next(blocks, None)
        if first is None:
            raise ConfigError(f"rows: {source.path} has no stored samples")
        entry = replace(
            _layout(source, like, first.values.shape[1:]),
            name=name, alias=name, dtype=first.dtype, source_dtype=first.source_dtype,
            codec=codec,
        )  # fmt: skip
        manifest = _manifest(source, entry, like, first, path)
        with (
            _removed_on_failure(path),
            ArchiveWriter.open(
                path, manifest, part=(0, 1), resume=False, filters={}, first_samples=lambda _: {}
            ) as writer,
        ):
            writer.start()
            for batch in _batches(source, stored, chain([first], blocks), entry, manifest.shards):
                writer.put(batch)
            writer.finish()
    return path


def _layout(source: Archive, like: str | None, shape: tuple[int, ...]) -> LayerEntry:
    """Return an entry with the axes of rows of a shape."""
    selected = source.layers.values() if like is None else [source.layer(like)]
    layers = [layer.entry for layer in selected]
    axes = _AXES[len(shape) - 1] if len(shape) <= len(_AXES) else ()
    plain = LayerEntry(
        name="", alias="", module_type=f"derived from {like}" if like else "derived", call=0,
        axes=axes, shape=shape, dtype="", source_dtype="", reduction="none",
    )  # fmt: skip
    if len(shape) == 1:
        return plain
    entries = [entry for layer in layers if (entry := _fitted(plain, layer))]
    if len({*map(repr, entries)}) > 1:
        raise ConfigError(f"rows: {shape} fits several layers of {source.path}; set like=")
    if entries:
        return entries[0]
    if like is not None:
        axes = layers[0].axes
        sizes = ", ".join(map("{} {}".format, layers[0].shape, axes))
        raise ConfigError(f"rows: {shape} do not have the positions of {like} ({sizes})")
    if not axes:
        raise ConfigError(f"rows: {shape} fit no layer of {source.path}; use up to three axes")
    return plain


def _fitted(plain: LayerEntry, layer: LayerEntry) -> LayerEntry | None:
    """Return `plain` with a layer's axes, or None if its positions differ."""
    shape, channel = plain.shape, layer.channel_axis - 1
    sizes = (*layer.shape[:channel], *layer.shape[channel + 1 :])
    if len(shape) == len(layer.shape) and (*shape[:channel], *shape[channel + 1 :]) == sizes:
        fields = ("axes", "grid", "prefix_tokens", "class_token", "positions", "drawn")
        return replace(plain, **{name: getattr(layer, name) for name in fields})
    spatial = layer.spatial_shape
    if len(shape) == 2 and spatial and shape[0] == spatial[0] * spatial[1]:
        grid = layer.grid if "token" in layer.axes else spatial
        return replace(plain, grid=grid)
    return None


def _manifest(
    source: Archive, entry: LayerEntry, like: str | None, first: RowBlock, path: Place
) -> Manifest:
    of = source.manifest
    row = torch.from_numpy(first.values[0].astype(np.float32))
    size = len(source) * entry.sample_bytes
    shards = min(MOST_SHARDS, -(-size // SHARD_BYTES))
    return replace(
        of,
        identity={
            **of.identity,
            "layers": {entry.name: asdict(entry)},
            "behaviour": {entry.name: fingerprint_of(row)},  # tells archives of other rows apart
            "derived_from": {"fingerprint": of.fingerprint, "layer": like},
        },
        config={**of.config, "archive": str(path), "derived_from": str(source.path)},
        command=sys.argv,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        layers=[entry],
        shards=shard_ranges(len(source), 1, shards),
        previous_fingerprints=(),
    )


def _batches(
    source: Archive, stored: Array, blocks: Iterable[RowBlock], entry: LayerEntry,
    shards: Sequence[tuple[int, int]],
) -> Iterator[ActivationBatch]:  # fmt: skip
    """Yield the rows of all samples, skipped ones as NaN; no batch crosses a shard boundary."""
    start = count = 0
    edges = [*stored, len(source)]
    for block in blocks:
        values = block.values
        first, count = count, count + len(values)
        stop = int(edges[count])
        if len(values) < stop - start:  # skipped samples before or after
            padded = np.full((stop - start, *entry.shape), np.nan, values.dtype)
            padded[stored[first:count] - start] = values
            values = padded
        for shard_start, shard_stop in shards:
            low, high = max(start, shard_start), min(stop, shard_stop)
            if low < high:
                yield _batch(source, low, values[low - start : high - start], entry)
        start = stop


def _batch(source: Archive, start: int, values: Array, entry: LayerEntry) -> ActivationBatch:
    stop, inputs = start + len(values), source.manifest.inputs
    samples = source.samples[start:stop]
    images = np.empty((len(values), 0), np.uint8)
    if inputs == FULL:
        images = source.read_rows(schema.IMAGE_ROWS, start, stop)
    return ActivationBatch(
        start=start,
        images=images,
        jpegs=[source.jpeg(row) for row in range(start, stop)] if inputs == JPEG else (),
        activations={entry.name: encode(values, entry.dtype)},
        statistics={entry.name: of_batch(*arguments(torch.from_numpy(values), entry))},
        samples=[(s.id, s.label, s.label_name, s.path) for s in samples],
        pixels_sha256=[sample.pixels_sha256 for sample in samples],
        errors=[sample.error for sample in samples],
    )


@contextmanager
def _removed_on_failure(path: Place) -> Iterator[None]:
    """Remove the folder that was created inside the block if it fails, and a killed call's now."""
    if (path / schema.MANIFEST).exists():
        finished = (path / schema.COMPLETE).exists()
        if finished or not local(path) or "derived_from" not in Manifest.read(path).identity:
            raise ConfigError(f"to: {path} exists; remove it, or set to=")
        with lock.writing(path):
            shutil.rmtree(str(path))
    existed = path.is_dir()
    try:
        yield
    except BaseException:
        if path.is_dir() and not existed:
            shutil.rmtree(str(path), ignore_errors=True)
        raise
