"""Datasets inside an HDF5 file of an archive: creation with chunks, checksums, dimension scales and
attributes.

Called by the shard writer and by stitch, so that a shard and the index look alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from pipeline.archive import schema
from pipeline.archive.codec import Codec, dataset_options
from pipeline.archive.manifest import LayerEntry, Manifest

TEXT = h5py.string_dtype("utf-8")
_INDEX = np.dtype("int64")


def write_root(file: h5py.File, manifest: Manifest, start: int, stop: int) -> None:
    """Write the root attributes.

    The manifest's text and the `sample` scale of the rows start..stop.
    """
    file.attrs["format"] = schema.FORMAT
    file.attrs["format_version"] = schema.FORMAT_VERSION
    file.attrs["fingerprint"] = manifest.fingerprint
    file.attrs["start"], file.attrs["stop"] = start, stop
    file.attrs["NX_class"] = "NXroot"
    file.attrs["default"] = schema.LAYERS_GROUP
    file.create_dataset(schema.MANIFEST_TEXT, data=manifest.to_json(samples=False), dtype=TEXT)
    samples = file.create_group(schema.SAMPLES_GROUP)
    scale = samples.create_dataset(
        schema.SAMPLE, data=np.arange(start, stop), dtype=_INDEX, fletcher32=True
    )
    scale.make_scale(schema.SAMPLE)
    layers = file.create_group(schema.LAYERS_GROUP)
    layers.attrs["NX_class"] = "NXentry"
    layers.attrs["default"] = schema.escape(manifest.layers[0].name)
    inputs = file.create_group(schema.INPUTS_GROUP)
    link_sample_scale(inputs)
    inputs.attrs["NX_class"], inputs.attrs["signal"] = "NXdata", schema.IMAGE
    inputs.attrs["axes"] = _texts([schema.SAMPLE, *schema.IMAGE_AXES])
    inputs.attrs["mean"], inputs.attrs["std"] = manifest.mean, manifest.std


def write_samples(
    file: h5py.File,
    columns: Mapping[str, Sequence[Any]],
    status: np.ndarray[Any, Any],
    errors: Sequence[str],
) -> None:
    """Write the sample table: `columns` holds id, label, label_name and path."""
    group = file[schema.SAMPLES_GROUP]
    for name in ("id", "label_name", "path"):
        _with_scales(
            group.create_dataset(name, data=list(columns[name]), dtype=TEXT), group, [schema.SAMPLE]
        )
    for name, values, dtype in (("label", columns["label"], "int64"), ("status", status, "uint8")):
        data = np.asarray(values, dtype=dtype)
        dataset = group.create_dataset(name, data=data, dtype=dtype, fletcher32=True)
        _with_scales(dataset, group, [schema.SAMPLE])
    _with_scales(
        group.create_dataset("error", data=list(errors), dtype=TEXT), group, [schema.SAMPLE]
    )


def link_sample_scale(group: h5py.Group) -> None:
    """Put the `sample` scale into a group too (readers look for scales beside the data)."""
    group[schema.SAMPLE] = group.file[schema.SAMPLES_GROUP][schema.SAMPLE]


def create_layer_group(file: h5py.File, layer: LayerEntry) -> h5py.Group:
    """Create a layer's group with its attributes and scales, and its statistics' group."""
    group = file.create_group(schema.layer_group(layer.name))
    link_sample_scale(group)
    group.attrs["NX_class"], group.attrs["signal"] = "NXdata", schema.ACTIVATION
    group.attrs["axes"] = _texts([schema.SAMPLE, *layer.axes])
    group.attrs["layer"] = layer.name
    statistics = group.create_group(schema.STATISTICS_GROUP)
    link_sample_scale(statistics)
    return group


def layer_attributes(dataset: h5py.Dataset, layer: LayerEntry) -> None:
    """Write what a reader must know of an activation."""
    dataset.attrs["axes"] = _texts([schema.SAMPLE, *layer.axes])
    for name in ("alias", "module_type", "call", "source_dtype", "reduction"):
        dataset.attrs[name] = getattr(layer, name)
    if "token" in layer.axes:
        dataset.attrs["prefix_tokens"] = layer.prefix_tokens
        if layer.grid:
            dataset.attrs["grid"] = layer.grid
    if layer.axes[-2:] == ("height", "width"):
        dataset.attrs["interpretation"] = "image"


def create_data(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    axes: Sequence[str],
    *,
    layout: h5py.VirtualLayout | None = None,
    codec: str = Codec.NONE,
) -> h5py.Dataset:
    """Create a dataset with named axes: chunked and checksummed, perhaps compressed, or virtual
    where a layout is given.

    `axes` names every axis, `sample` first where there is one.
    """
    fill = np.nan if np.dtype(dtype).kind == "f" else 0
    if layout is not None:
        dataset = group.create_virtual_dataset(name, layout, fillvalue=fill)
    else:
        channel = axes.index(schema.CHANNEL) if schema.CHANNEL in axes else 0
        chunks = schema.chunk_shape(shape, np.dtype(dtype).itemsize, channel_axis=channel)
        dataset = group.create_dataset(
            name,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            fillvalue=fill,
            **dataset_options(codec),
        )
    _with_scales(dataset, group, axes)
    return dataset


def write_filters(file: h5py.File, filters: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write the weights of convolutions on few input channels, `(filter, channel, height.

    Width)` each.
    """
    group = file.create_group(schema.FILTERS_GROUP)
    for name, weights in filters.items():
        dataset = create_data(
            group, schema.escape(name), weights.shape, weights.dtype.str, schema.FILTER_AXES
        )
        dataset[...] = weights
        dataset.attrs["layer"] = name


def _with_scales(dataset: h5py.Dataset, group: h5py.Group, axes: Sequence[str]) -> None:
    for i, (axis, size) in enumerate(zip(axes, dataset.shape, strict=True)):
        name = axis if axis not in group or len(group[axis]) == size else f"{axis}_{size}"
        if name not in group:
            scale = group.create_dataset(name, data=np.arange(size), dtype=_INDEX)
            scale.make_scale(name)
        dataset.dims[i].attach_scale(group[name])


def _texts(names: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.array(list(names), dtype=TEXT)
