"""An archive as an xarray.DataTree."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.reading.hdf5_check import check_hdf5_view
from pipeline.common.errors import ConfigError
from pipeline.common.places import Place, local_file


def data_tree(path: Place, ids: Sequence[str], layers: Iterable[str]) -> Any:
    """Return a lazy tree of an archive's HDF5 file; see `Archive.to_xarray`."""
    try:
        import xarray
    except ImportError as error:
        raise ConfigError("xarray is not installed; run: pip install xarray h5netcdf") from error
    folder = local_file(path, "xarray")
    file = folder if folder.is_file() else folder / schema.INDEX
    check_hdf5_view([ArchiveFile(file)])  # HDF5 may crash on a damaged file
    tree = xarray.open_datatree(file, engine="h5netcdf", phony_dims="sort")
    coordinate = ("sample", list(ids))
    selected = {schema.escape(layer) for layer in layers}
    for name, node in [*tree[schema.LAYERS_GROUP].children.items()]:
        if name in selected:
            node.dataset = node.to_dataset().assign_coords(id=coordinate)
        else:
            node.orphan()
    return tree
