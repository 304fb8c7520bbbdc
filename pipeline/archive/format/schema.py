"""The archive format, version 1: all paths, attributes and axis names, and their meaning.

An archive is a folder. Its unit of commit is a shard: an HDF5 file with a contiguous range of
samples.

    manifest.json    MUST exist first and MUST NOT change afterwards: format version, fingerprint,
                     resolved configuration, ordered sample ids, layers, shard ranges, environment;
                     identity.derived_from names the archive that derived rows come from
    lock, lock.<…>   MAY exist; only held locks (flock) are meaningful. Content, for people: host,
                     pid, index and count of the part that held it last, as JSON
    shards/NNNNN.h5  MUST hold exactly the rows `shards[NNNNN]` of the manifest; MUST NOT change
                     once it has its final name. `.NNNNN.h5.<…>.tmp` is unfinished and MUST be
                     ignored
    archive.h5       MUST be written after every shard exists: the whole archive as virtual datasets
                     whose sources are relative paths `shards/NNNNN.h5`, the sample table and the
                     merged statistics
    errors.jsonl     MUST list every skipped sample, one JSON object a line; may be empty
    COMPLETE.json    MUST be written last: counts and a digest of every file above: the sha256, or
                     for HDF5 files `xxh3-128:` and the XXH3-128 of the footer's text. An archive
                     without it is partial

A packed file is an archive in one HDF5 file: a shard of all samples.

HDF5 content of every file (a shard holds its own rows, archive.h5 all rows):

    /                                    attributes format, format_version, fingerprint, start, stop
    /manifest                            the manifest as JSON text, without the sample ids and,
                                         except in packed files, without `created` and
                                         `config.archive`: the same command writes the same bytes
    /samples/{id,label,label_name,path}  one row per sample; label -1 and empty texts: no value
    /samples/status                      0 stored; 1 skipped: activations are NaN, the image is 0
    /samples/error                       why the sample was skipped
    /samples/pixels_sha256               of the model's input pixels; empty for skipped samples
    /inputs/image                        uint8 (sample, channel, height, width): the model's input
                                         pixels, RGB, before normalisation (attributes of /inputs:
                                         mean, std and bgr; value = (p/255 - mean)/std, p with its
                                         channels reversed if bgr is true). Exists only if the
                                         manifest's `inputs` is `full`; `none` stores no inputs
    /inputs/jpeg, /inputs/offset         instead, if `inputs` is `jpeg`: uint8 (byte), the JPEG
                                         files of all samples concatenated, and int64 (sample + 1):
                                         sample i is jpeg[offset[i]:offset[i + 1]]. Without
                                         dimension scales
    /layers/<layer>/activation           (sample, *axes): output of the layer after the reduction.
                                         Axes are channel height width or height width channel
                                         (maps), token channel or channel token (tokens; attributes
                                         prefix_tokens, class_token (whether the first of them is
                                         one) and, if known, grid = height, width of the other
                                         tokens), channel (vectors) or head query key
                                         (attention weights; heads are channels; prefix_tokens
                                         and grid are those of the keys, and of the queries if
                                         there are as many). The attribute positions names the
                                         positions that spatial reductions and statistics cover:
                                         `all`, the grid without prefix tokens (nonfinite_count
                                         counts every value), or the class token
    /inputs/checksum, /layers/<layer>/checksum
                                         uint64 (sample): XXH3-64 of the bytes of each row of image
                                         or activation, little-endian, in C order, uncompressed; of
                                         each JPEG file (shards and packed files; not in archive.h5)
    /layers/<layer>/position             int64 (sample, token), if the reduction samples positions:
                                         index of each position in the map, row by row, or in the
                                         tokens without prefix tokens
    /layers/<layer>/statistics/sample_mean, sample_max
                                         (sample, channel), over the finite values of each sample;
                                         not for vectors, which are their own means and maxima
    /layers/<layer>/statistics/…         (channel), over the finite values of all stored samples.
                                         archive.h5 and packed files: `STATISTICS`. Shards:
                                         `SHARD_STATISTICS`, to be merged; m2 is the sum of squared
                                         deviations from the shard's mean
    /filters/<layer>                     (filter, channel, height, width): weights of a convolution
                                         on the image (attribute order: index in execution order)

`<layer>` is the layer's name with `%` and `/` written as `%25` and `%2F`; the links of /layers are
in creation order, which is execution order. Every dimension of every other dataset has a dimension
scale with the name of its axis (for netCDF-4 readers); groups have NX_class, signal, axes and
default (for NeXus viewers). All integers are little-endian or native; texts are UTF-8 of variable
length; floats are float32. Activations can also be float16 or bfloat16 (an HDF5 float with the
upper half of a float32's bits); the manifest gives the type. Rows (image, jpeg, activation) MUST be
contiguous datasets with every row written, rows of skipped samples as NaN or 0. Layers with a
`codec` in the manifest are instead chunked, shuffled and compressed by deflate (`gzip`) or by
filter 32015 (`zstd`). Readers MUST ignore unknown names; a change that old readers would misread
MUST raise the format version.

After the HDF5 content, every file has JSON texts and a footer, which HDF5 ignores. The end-of-file
address of the superblock MUST include them: HDF5 truncates a file to it when it is opened for
writing.

    texts            one JSON array per column of `SAMPLE_COLUMNS`; in a packed file also
                     `manifest`, a JSON string
    footer           JSON object, below
    8 bytes          length of the footer, little-endian
    8 bytes          XXH3-64 of the footer, little-endian
    8 bytes          FMFOOT01

The footer MUST hold:

    fingerprint, start, stop   equal to the root attributes
    size             bytes before the footer
    header           XXH3-128 of these bytes without the rows, in hexadecimal
    tables           HDF5 path → shape, dtype, extents ([offset, length] of contiguous values; for
                     compressed values one per chunk, in C order of their positions), chunk (its
                     shape; empty for contiguous values), codec, and digest: XXH3-64 of
                     `[<shape>] <dtype> ` and the values, empty for rows, which have one checksum
                     each. Every numeric dataset except scales and virtual datasets MUST be listed
    texts            name → offset, length, XXH3-64 of the text
    filters          layers with stored weights, in execution order
    rounding         layer → largest relative error of the stored type

A reader MUST compare the footer with its checksum and every offset and length with the file size,
and SHOULD compare each table, text and row with its digest on reading; it needs no other part of
the file. Digests detect damage, not forgery.
"""

from pipeline.common.natural_order import natural_order
from pipeline.common.object_path import ObjectPath
from pipeline.common.places import Place

FORMAT = "featuremaps-archive"
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
COMPLETE = "COMPLETE.json"
INDEX = "archive.h5"
ERRORS = "errors.jsonl"
LOCK = "lock"
SHARDS = "shards"

SAMPLES_GROUP = "samples"
INPUTS_GROUP = "inputs"
LAYERS_GROUP = "layers"
FILTERS_GROUP = "filters"
STATISTICS_GROUP = "statistics"
ACTIVATION = "activation"
CHECKSUM = "checksum"
POSITION = "position"
IMAGE = "image"
JPEG = "jpeg"
OFFSET = "offset"
IMAGE_AXES = ("channel", "height", "width")
FILTER_AXES = ("filter", "channel", "height", "width")
MANIFEST_TEXT = "manifest"
IMAGE_ROWS = f"/{INPUTS_GROUP}/{IMAGE}"
JPEG_ROWS = f"/{INPUTS_GROUP}/{JPEG}"
JPEG_OFFSETS = f"/{INPUTS_GROUP}/{OFFSET}"

ROUNDING = "max_relative_error"
"""Attribute of a float16 or bfloat16 activation: largest relative error against float32 over normal
numbers; overestimated by at most 1 %."""

SAMPLE = "sample"
CHANNEL = "channel"
HEAD = "head"
"""Axis of attention weights; takes the role of channels."""
STATUS_STORED = 0
STATUS_SKIPPED = 1

NUMBER_COLUMNS = {"label": "int64", "status": "uint8"}
"""Numeric columns of the sample table → type; the other columns are texts."""
SAMPLE_COLUMNS = ("id", "label", "label_name", "path", "pixels_sha256", "status", "error")

SAMPLE_STATISTICS = ("sample_mean", "sample_max")
STATISTICS = ("count", "mean", "std", "min", "max", "zero_fraction", "nonfinite_count")
"""Statistics per channel of a whole archive."""
SHARD_STATISTICS = ("count", "mean", "m2", "min", "max", "zeros", "nonfinite")
"""Statistics per channel of a shard."""

CHUNK_BYTES = 2**20
"""Maximum chunk size; larger samples are split along their channels."""

SMALL_CHUNK_BYTES = 64 * 2**10
"""Maximum size of a chunk that several small samples share."""


def archive_folder(path: Place) -> Place:
    """Return the archive's folder, given the folder, a file in it, its shards or its run's folder.

    A packed file is an archive itself.
    """
    if isinstance(path, ObjectPath):
        return path.archive
    folder = path.parent if path.is_file() else path
    if folder.name == SHARDS and (folder.parent / MANIFEST).exists():
        return folder.parent
    if path.is_file() and not (folder / MANIFEST).exists():
        return path
    nested = folder / "archive"
    return nested if not (folder / MANIFEST).exists() and (nested / MANIFEST).exists() else folder


def archives_of(path: Place) -> list[Place]:
    """Return the archive of `archive_folder`, or all archives of a sweep in natural order."""
    archive = archive_folder(path)
    patterns = (f"archives/*/{MANIFEST}", f"*/archive/{MANIFEST}")
    archives = {file.parent for pattern in patterns for file in archive.glob(pattern)}
    if not archives or (archive / MANIFEST).exists():
        return [archive]
    return sorted(archives, key=natural_order)


def name_of(archive: Place) -> str:
    """Return the name of an archive: that of its folder, its run or its packed file.

    >>> from pathlib import Path
    >>> name_of(Path("s/archives/vgg11")), name_of(Path("s/vgg11/archive")), name_of(Path("a.h5"))
    ('vgg11', 'vgg11', 'a')
    """
    path = archive.absolute()
    if path.name == "archive":
        return path.parent.name
    return path.stem if path.suffix == ".h5" else path.name


def shard_path(archive: Place, number: int) -> Place:
    """Return the path of a shard."""
    return archive / SHARDS / f"{number:05d}.h5"


def escape(layer: str) -> str:
    """Return a layer's name as one HDF5 path component.

    >>> escape("blocks/1%"), escape("layer1.0"), escape("..")
    ('blocks%2F1%25', 'layer1.0', '%2E%2E')
    """
    escaped = layer.replace("%", "%25").replace("/", "%2F")
    return escaped if escaped.strip(".") else escaped.replace(".", "%2E")


def layer_group(layer: str) -> str:
    """Return the HDF5 path of a layer's group."""
    return f"/{LAYERS_GROUP}/{escape(layer)}"


def activation_rows(layer: str) -> str:
    """Return the HDF5 path of a layer's activations."""
    return f"{layer_group(layer)}/{ACTIVATION}"


def position_rows(layer: str) -> str:
    """Return the HDF5 path of a layer's sampled positions."""
    return f"{layer_group(layer)}/{POSITION}"


def statistic(layer: str, figure: str) -> str:
    """Return the HDF5 path of a statistic of a layer, per channel or per sample and channel."""
    return f"{layer_group(layer)}/{STATISTICS_GROUP}/{figure}"


def filter_weights(layer: str) -> str:
    """Return the HDF5 path of a convolution's weights."""
    return f"/{FILTERS_GROUP}/{escape(layer)}"


def checksum_path(rows: str) -> str:
    """Return the HDF5 path of the checksums of a dataset of rows.

    >>> checksum_path("/layers/conv1/activation")
    '/layers/conv1/checksum'
    """
    return f"{rows.rpartition('/')[0]}/{CHECKSUM}"


def chunk_shape(shape: tuple[int, ...], itemsize: int, *, channel_axis: int) -> tuple[int, ...]:
    """Return the chunk shape of a dataset of `shape` (sample first).

    A chunk holds one sample, or a range of its channels of at most `CHUNK_BYTES`. Samples smaller
    than `SMALL_CHUNK_BYTES` share a chunk.

    >>> chunk_shape((100, 64, 112, 112), 4, channel_axis=1)
    (1, 16, 112, 112)
    >>> chunk_shape((100, 512), 4, channel_axis=1)
    (32, 512)
    """
    row = itemsize
    for size in shape[1:]:
        row *= size
    if row <= SMALL_CHUNK_BYTES:
        return (max(1, min(shape[0], SMALL_CHUNK_BYTES // row)), *shape[1:])
    chunk = [1, *shape[1:]]
    if row > CHUNK_BYTES:
        channels = shape[channel_axis]
        limit = max(1, CHUNK_BYTES * channels // row)
        chunk[channel_axis] = -(-channels // -(-channels // limit))  # equal parts: little padding
    return tuple(chunk)
