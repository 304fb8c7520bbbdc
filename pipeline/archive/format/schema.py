"""The archive format, version 1: every path, attribute and axis name, and what they mean.

An archive is a folder. Its unit of commit is a shard: one HDF5 file with a contiguous range of
samples.

    manifest.json    MUST exist first and MUST NOT change afterwards: format version, fingerprint,
                     resolved configuration, ordered sample ids, layers, shard ranges, environment
    lock, lock.<i>   MAY exist; only held locks (flock) mean anything. Content, for people: host,
                     pid, index and count of the part that took it last, as JSON
    shards/NNNNN.h5  MUST hold exactly the rows that the manifest's `shards[NNNNN]` gives; MUST NOT
                     change once it has its name. `.NNNNN.h5.<…>.tmp` is unfinished work and MUST be
                     ignored
    archive.h5       MUST be written after every shard exists: the whole archive as virtual datasets
                     whose sources are relative paths `shards/NNNNN.h5`, the sample table and the
                     merged statistics
    errors.jsonl     MUST list every skipped sample, one JSON object a line; empty when none was
    COMPLETE.json    MUST be written last: counts and a digest of every file above: the sha256 or,
                     of an HDF5 file, `xxh3-128:` and the XXH3-128 of its footer's text. An archive
                     without it is partial

A packed file is an archive in one HDF5 file: a shard of all samples.

HDF5 content of every file (a shard holds its rows, archive.h5 all of them):

    /                                    attributes format, format_version, fingerprint, start, stop
    /manifest                            the manifest as JSON text, without its sample ids, and but
                                         in packed files without `created` and `config.archive`:
                                         the same command makes the same bytes
    /samples/{id,label,label_name,path}  one row per sample; label -1 and empty texts mean none
    /samples/status                      0 stored, 1 skipped: its activations are NaN, its picture 0
    /samples/error                       why it was skipped
    /samples/pixels_sha256               of the pixels that the model saw; empty for skipped samples
    /inputs/image                        uint8 (sample, channel, height, width): the pixels that the
                                         model saw, red first, before normalisation (attributes of
                                         /inputs: mean, std and bgr; value = (p/255 - mean)/std, p
                                         with its channels reversed where bgr is true). Only there
                                         where the manifest's `inputs` is `full`; `none` stores none
    /inputs/jpeg, /inputs/offset         instead, where it is `jpeg`: uint8 (byte), a JPEG file per
                                         sample, one after another, and int64 (sample + 1): sample i
                                         is jpeg[offset[i]:offset[i + 1]]. Without dimension scales
    /layers/<layer>/activation           (sample, *axes): what the layer returned, after the
                                         reduction. Axes are channel height width or height width
                                         channel (maps), token channel or channel token (tokens;
                                         attributes prefix_tokens and, where it is known, grid =
                                         height, width of the others), channel (vectors) or head
                                         query key (attention weights; heads are channels). The
                                         attribute positions says what spatial reductions and
                                         statistics are taken over: `all`, the grid without
                                         prefix tokens (nonfinite_count counts every value), or the
                                         class token
    /inputs/checksum, /layers/<layer>/checksum
                                         uint64 (sample): XXH3-64 of the bytes of each row of image
                                         or activation, little-endian, in C order, not compressed;
                                         of each JPEG file (shards and packed files; not in
                                         archive.h5)
    /layers/<layer>/position             int64 (sample, token), where the reduction has drawn
                                         positions: the index of each in the map, row by row, or in
                                         the tokens without prefix tokens
    /layers/<layer>/statistics/sample_mean, sample_max
                                         (sample, channel), over the finite values of each sample;
                                         not of vectors, which are their own means and maxima
    /layers/<layer>/statistics/…         (channel), over the finite values of all samples that were
                                         not skipped. archive.h5 and packed files: `STATISTICS`. A
                                         shard: `SHARD_STATISTICS`, to be merged; m2 is the sum of
                                         squared deviations from the shard's mean
    /filters/<layer>                     (filter, channel, height, width): weights of a convolution
                                         that sees the image (attribute order: in execution order)

`<layer>` is the layer's name with `%` and `/` written as `%25` and `%2F`. Every dimension of every
other dataset carries a dimension scale of its axis' name (netCDF-4 readers find them named); groups
carry NX_class, signal, axes and default (NeXus readers find the plottable data). All integers are
little-endian or native; texts are UTF-8 of variable length; floats are float32; activations
also float16 or bfloat16 (a float of HDF5 with the upper half of a float32's bits), as the manifest
says. Rows (image, jpeg, activation) MUST be contiguous datasets, every row of
them written, those of skipped samples as NaN or 0; except where the layer has a `codec` in the
manifest: those are chunked, shuffled and compressed by deflate (`gzip`) or by filter 32015
(`zstd`). Readers MUST ignore names that they do not know; a change that old readers would misread
MUST raise the format version.

Behind the HDF5 content, which HDF5 ignores, every file has JSON texts and a footer:

    texts            one JSON array per column of `SAMPLE_COLUMNS`; in a packed file also
                     `manifest`, a JSON string
    footer           JSON object, below
    8 bytes          length of the footer, little-endian
    8 bytes          XXH3-64 of the footer, little-endian
    8 bytes          FMFOOT01

The footer MUST hold:

    fingerprint, start, stop   as the root attributes
    size             bytes before the footer
    header           XXH3-128 of these bytes without the rows, in hexadecimal
    tables           HDF5 path → shape, dtype, extents ([offset, length] of contiguous values; of
                     compressed ones that of every chunk, in C order of their positions), chunk (its
                     shape; empty for contiguous values), codec, and digest: XXH3-64 of
                     `[<shape>] <dtype> ` and the values, empty for rows, which have a checksum
                     each. Every dataset of numbers but scales and virtual ones MUST be listed
    texts            name → offset, length, XXH3-64 of the text
    filters          layers with stored weights, in execution order
    rounding         layer → largest relative error of the stored type

A reader MUST compare the footer with its checksum and every offset and length with the file's size,
and SHOULD compare each table, text and row with its digest when it reads it; it needs nothing else
of a file. Digests detect damage, not forgery.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.common.natural_order import natural_order

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
"""Attribute of a float16 or bfloat16 activation: largest relative error against float32, of normal
numbers; at most 1 % more than it is."""

SAMPLE = "sample"
CHANNEL = "channel"
HEAD = "head"
"""Stands where channels do, for attention weights."""
STATUS_STORED = 0
STATUS_SKIPPED = 1

NUMBER_COLUMNS = {"label": "int64", "status": "uint8"}
"""Columns of the sample table that are numbers → their type; the others are texts."""
SAMPLE_COLUMNS = ("id", "label", "label_name", "path", "pixels_sha256", "status", "error")

SAMPLE_STATISTICS = ("sample_mean", "sample_max")
STATISTICS = ("count", "mean", "std", "min", "max", "zero_fraction", "nonfinite_count")
"""Per channel, of a whole archive."""
SHARD_STATISTICS = ("count", "mean", "m2", "min", "max", "zeros", "nonfinite")
"""Per channel, of a shard."""

CHUNK_BYTES = 2**20
"""Upper limit of a chunk: one sample, its channels split."""

SMALL_CHUNK_BYTES = 64 * 2**10
"""Several small samples share a chunk up to this size."""


def archive_folder(path: Path) -> Path:
    """Return the archive's folder, given it, a file directly in it, or the folder of its run.

    A packed file is an archive itself.
    """
    if path.is_file() and not (path.parent / MANIFEST).exists():
        return path
    folder = path.parent if path.is_file() else path
    of_run = folder / "archive"
    return of_run if not (folder / MANIFEST).exists() and (of_run / MANIFEST).exists() else folder


def archives_of(path: Path) -> list[Path]:
    """Return the archive that `archive_folder` finds, or all that a sweep's folder holds, in
    natural order.
    """
    folder = archive_folder(path)
    if folder.is_file() or (folder / MANIFEST).exists():
        return [folder]
    found = {
        file.parent
        for way in ("archives/*", "*/archive")
        for file in folder.glob(f"{way}/{MANIFEST}")
    }
    return sorted(found, key=natural_order) or [folder]


def name_of(archive: Path) -> str:
    """Return what an archive is called: its folder's name, or its run's, or its file's.

    >>> name_of(Path("s/archives/vgg11")), name_of(Path("s/vgg11/archive")), name_of(Path("a.h5"))
    ('vgg11', 'vgg11', 'a')
    """
    path = archive.absolute()
    if path.name == "archive":
        return path.parent.name
    return path.stem if path.suffix == ".h5" else path.name


def shard_path(archive: Path, number: int) -> Path:
    """Return the path of shard `number`."""
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
    """Return the HDF5 path of the places that a layer's positions were drawn at."""
    return f"{layer_group(layer)}/{POSITION}"


def statistic(layer: str, figure: str) -> str:
    """Return the HDF5 path of a figure of a layer, per channel or per sample and channel."""
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
    """Return the chunk of a dataset of `shape` (sample first): one sample, channels split to
    `CHUNK_BYTES`.

    Samples of less than `SMALL_CHUNK_BYTES` share a chunk.

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
        most = max(1, CHUNK_BYTES * channels // row)
        chunk[channel_axis] = -(-channels // -(-channels // most))  # even parts: little is padding
    return tuple(chunk)
