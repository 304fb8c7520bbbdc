"""The tree of HDF5 groups and datasets in a shard, archive.h5 or a packed file."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.codec import dataset_options
from pipeline.archive.format.jpeg import QUALITY
from pipeline.archive.format.layer_entry import LayerEntry, RowDataset
from pipeline.archive.format.manifest import FULL, JPEG, Manifest
from pipeline.archive.format.stored_type import BFLOAT16, bits_type, value_type
from pipeline.common.arrays import Array

TEXT = h5py.string_dtype("utf-8")
_INDEX = np.dtype("int64")
_LAYERS_PER_SCALE = 800
"""Layers that share a `sample` scale: HDF5 lists at most 4095 datasets that use it."""


def write_tree(
    file: h5py.File,
    manifest: Manifest,
    start: int,
    stop: int,
    *,
    virtual: bool = False,
    packed: bool = False,
) -> None:
    """Create the groups and datasets of the rows start..stop, except sample table and statistics.

    Args:
        file: new and empty.
        manifest: of the archive.
        start, stop: half-open range of rows.
        virtual: whether the datasets are virtual, with the shards beside the file as sources,
            instead of empty datasets to fill.
        packed: whether the file is self-contained, without a manifest.json beside it.
    """
    _write_root(file, manifest, start, stop)
    text = manifest.to_json(samples=False, creation=packed)
    file.create_dataset(schema.MANIFEST_TEXT, data=text, dtype=TEXT)

    def create(path: str, rows: RowDataset) -> h5py.Dataset:
        parent, _, name = path.rpartition("/")
        group = file[parent]
        if virtual:
            dataset = _virtual_rows(group, name, manifest.shards, rows.shape, rows.dtype)
        else:
            shape = (stop - start, *rows.shape)
            dataset = create_rows(group, name, shape, rows.dtype, rows.axes, codec=rows.codec)
            if rows.checked:
                _create_checksums(group, stop - start)
        _with_scales(dataset, group, (schema.SAMPLE, *rows.axes))
        return dataset

    if manifest.inputs == FULL:
        create(schema.IMAGE_ROWS, manifest.row_datasets[schema.IMAGE_ROWS])
    elif manifest.inputs == JPEG and not virtual:
        _create_checksums(file[schema.INPUTS_GROUP], stop - start)
    scale = file[schema.SAMPLES_GROUP][schema.SAMPLE]
    for number, layer in enumerate(manifest.layers):
        group = file.create_group(schema.layer_group(layer.name))
        if number and number % _LAYERS_PER_SCALE == 0:
            scale = _sample_scale(group, start, stop)
        else:
            group[schema.SAMPLE] = scale
        _describe_layer_group(group, layer)
        for path, rows in layer.row_datasets.items():
            dataset = create(path, rows)
            if rows.checked:
                _layer_attributes(dataset, layer)


def write_jpeg_index(file: h5py.File, offsets: Sequence[Array]) -> None:
    """Write the virtual dataset of all shards' JPEG files, given their `(sample + 1,)` offsets."""
    ranges = list(pairwise(accumulate((int(shard[-1]) for shard in offsets), initial=0)))
    stored = _virtual_rows(file[schema.INPUTS_GROUP], schema.JPEG, ranges, (), "uint8")
    shifted = (shard[1:] + start for shard, (start, _) in zip(offsets, ranges, strict=True))
    write_jpeg_offsets(stored, np.concatenate([[0], *shifted]))


def write_jpeg_offsets(stored: h5py.Dataset, offsets: Array) -> None:
    """Write the `(sample + 1,)` offsets of the samples in a dataset of JPEG files."""
    stored.attrs["media_type"], stored.attrs["quality"] = "image/jpeg", QUALITY
    stored.parent.create_dataset(schema.OFFSET, data=offsets, dtype=_INDEX)


def _create_checksums(group: h5py.Group, rows: int) -> None:
    sums = group.create_dataset(schema.CHECKSUM, shape=(rows,), dtype="uint64")
    _with_scales(sums, group, (schema.SAMPLE,))


def _virtual_rows(
    group: h5py.Group,
    name: str,
    ranges: Sequence[tuple[int, int]],
    shape: tuple[int, ...],
    dtype: str,
) -> h5py.Dataset:
    """Create a virtual dataset that concatenates the shards' datasets of the same name.

    h5py's own function would store timestamps. In names of sources, HDF5 reads `%%` as `%`.
    """
    value_dtype = value_type(dtype)
    space = h5py.h5s.create_simple((ranges[-1][1], *shape))
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)
    plist.set_fill_value(np.array(np.nan if value_dtype.kind == "f" else 0, value_dtype))
    source = f"{group.name}/{name}".replace("%", "%%").encode()
    for number, (start, stop) in enumerate(ranges):
        file = f"{schema.SHARDS}/{schema.shard_path(Path(), number).name}"
        rows = space.copy()
        rows.select_hyperslab((start, *[0] * len(shape)), (stop - start, *shape))
        source_space = h5py.h5s.create_simple((stop - start, *shape))
        plist.set_virtual(rows, file.encode(), source, source_space)
    return _create(group, name, dtype, space, plist)


def _create(group: h5py.Group, name: str, dtype: str, space: Any, plist: Any) -> h5py.Dataset:
    stored = _hdf5_type(dtype)
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), stored, space, plist))


def _hdf5_type(name: str) -> Any:
    if name != BFLOAT16:
        return h5py.h5t.py_create(np.dtype(name), logical=True)
    bfloat16 = h5py.h5t.IEEE_F32LE.copy()
    bfloat16.set_fields(15, 7, 8, 0, 7)  # sign, exponent and its size, mantissa and its size
    bfloat16.set_precision(16)
    bfloat16.set_size(2)
    bfloat16.set_ebias(127)
    return bfloat16


def type_name(dataset: h5py.Dataset) -> str:
    """Return the name of a dataset's type as in a footer."""
    is_bfloat16 = dataset.id.get_type().equal(_hdf5_type(BFLOAT16))
    return BFLOAT16 if is_bfloat16 else str(dataset.dtype.name)


def _write_root(file: h5py.File, manifest: Manifest, start: int, stop: int) -> None:
    """Write the root attributes, the top-level groups and the `sample` scale."""
    file.attrs["format"] = schema.FORMAT
    file.attrs["format_version"] = schema.FORMAT_VERSION
    file.attrs["fingerprint"] = (
        manifest.fingerprint
        if stop - start == len(manifest.samples)
        else manifest.fingerprint_at(start)
    )
    file.attrs["start"], file.attrs["stop"] = start, stop
    file.attrs["NX_class"] = "NXroot"
    file.attrs["default"] = schema.LAYERS_GROUP
    samples = file.create_group(schema.SAMPLES_GROUP)
    scale = _sample_scale(samples, start, stop)
    layers = file.create_group(schema.LAYERS_GROUP, track_order=True)
    layers.attrs["NX_class"] = "NXentry"
    layers.attrs["default"] = schema.escape(manifest.layers[0].name)
    inputs = file.create_group(schema.INPUTS_GROUP)
    inputs[schema.SAMPLE] = scale  # readers look for scales beside the data
    if manifest.inputs == FULL:
        inputs.attrs["NX_class"], inputs.attrs["signal"] = "NXdata", schema.IMAGE
        inputs.attrs["axes"] = _texts([schema.SAMPLE, *schema.IMAGE_AXES])
    inputs.attrs["mean"], inputs.attrs["std"] = manifest.mean, manifest.std
    inputs.attrs["bgr"] = int(manifest.bgr)  # not an HDF5 enumeration


def write_samples(file: h5py.File, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write the sample table, the columns `schema.SAMPLE_COLUMNS`."""
    group = file[schema.SAMPLES_GROUP]
    for name in schema.SAMPLE_COLUMNS:
        dtype = schema.NUMBER_COLUMNS.get(name, TEXT)
        values = (
            np.asarray(columns[name], dtype) if name in schema.NUMBER_COLUMNS else columns[name]
        )
        dataset = group.create_dataset(name, data=values, dtype=dtype)
        _with_scales(dataset, group, [schema.SAMPLE])


def _sample_scale(group: h5py.Group, start: int, stop: int) -> h5py.Dataset:
    scale = group.create_dataset(schema.SAMPLE, data=np.arange(start, stop), dtype=_INDEX)
    scale.make_scale(schema.SAMPLE)
    return scale


def _describe_layer_group(group: h5py.Group, layer: LayerEntry) -> None:
    """Write the attributes of a layer's group, and create its group of statistics."""
    group.attrs["NX_class"], group.attrs["signal"] = "NXdata", schema.ACTIVATION
    group.attrs["axes"] = _texts([schema.SAMPLE, *layer.axes])
    group.attrs["layer"] = layer.name
    statistics = group.create_group(schema.STATISTICS_GROUP)
    statistics[schema.SAMPLE] = group[schema.SAMPLE]


def _layer_attributes(dataset: h5py.Dataset, layer: LayerEntry) -> None:
    """Write the attributes that readers need to interpret an activation."""
    dataset.attrs["axes"] = _texts([schema.SAMPLE, *layer.axes])
    for name in ("alias", "module_type", "call", "source_dtype", "reduction", "positions"):
        dataset.attrs[name] = getattr(layer, name)
    if {"token", "key"} & {*layer.axes}:
        dataset.attrs["prefix_tokens"] = layer.prefix_tokens
        dataset.attrs["class_token"] = int(layer.class_token)
        if layer.grid:
            dataset.attrs["grid"] = layer.grid
    if layer.axes[-2:] == ("height", "width"):
        dataset.attrs["interpretation"] = "image"


def create_rows(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    axes: Sequence[str],
    *,
    codec: str = "none",
) -> h5py.Dataset:
    """Create a dataset of rows, `(sample, …)`, chunked if it has a codec, otherwise contiguous.

    Contiguous space is allocated immediately but not initialized: every row must be written.
    """
    if codec != "none":
        channel = 1 + axes.index(schema.CHANNEL) if schema.CHANNEL in axes else 1
        chunks = schema.chunk_shape(shape, bits_type(dtype).itemsize, channel_axis=channel)
        fill = np.nan if value_type(dtype).kind == "f" else 0
        return group.create_dataset(
            name, shape=shape, dtype=h5py.Datatype(_hdf5_type(dtype)), chunks=chunks,
            fillvalue=fill, **dataset_options(codec),
        )  # fmt: skip
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)  # the same rows give the same bytes
    return _create(group, name, dtype, h5py.h5s.create_simple(shape), plist)


def write_figures(
    file: h5py.File, layer: str, figures: Mapping[str, Array], rounding: float | None
) -> None:
    """Write a layer's statistics per channel, each `(channel,)`, and its rounding error."""
    group = file[schema.layer_group(layer)]
    statistics = group[schema.STATISTICS_GROUP]
    for name, values in figures.items():
        dataset = statistics.create_dataset(name, data=values)
        _with_scales(dataset, statistics, (schema.CHANNEL,))
    if rounding is not None:
        group[schema.ACTIVATION].attrs[schema.ROUNDING] = rounding


def write_filters(file: h5py.File, filters: Mapping[str, Array]) -> None:
    """Write the weights of the convolutions on the image, `(filter, channel, height, width)`."""
    file.create_group(schema.FILTERS_GROUP)
    for order, (name, weights) in enumerate(filters.items()):
        dataset = file.create_dataset(schema.filter_weights(name), data=weights)
        group = dataset.parent
        _with_scales(dataset, group, schema.FILTER_AXES)
        dataset.attrs["layer"], dataset.attrs["order"] = name, order


def _with_scales(dataset: h5py.Dataset, group: h5py.Group, axes: Sequence[str]) -> None:
    """Attach the scales of the axes, by h5py's low-level calls: a shard has hundreds of them."""
    for i, (axis, size) in enumerate(zip(axes, dataset.id.shape, strict=True)):
        h5py.h5ds.attach_scale(dataset.id, _scale(group, axis, size), i)


def _scale(group: h5py.Group, axis: str, size: int) -> h5py.h5d.DatasetID:
    """Return a group's scale of an axis; a second scale if the first has another size."""
    for name in (axis, f"{axis}_{size}"):
        if name.encode() in group.id:
            scale = h5py.h5d.open(group.id, name.encode())
        else:
            scale = group.create_dataset(name, data=np.arange(size), dtype=_INDEX).id
            h5py.h5ds.set_scale(scale, name.encode())
        if scale.shape == (size,):
            break
    return scale


def _texts(names: Sequence[str]) -> Array:
    return np.array(list(names), dtype=TEXT)
