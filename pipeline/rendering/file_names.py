"""File names that people recognise, and that are safe whatever an id or a layer's name holds."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from pipeline.archive.format.manifest import LayerEntry

_IMAGE_ENDING = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif|ppm)$", re.IGNORECASE)
_LONGEST = 40


def sample_stem(index: int, sample_id: str) -> str:
    """Return the file stem of a sample's pictures and pages: never a path, whatever the id holds.

    Its row, then the last part of its id as far as that is letters and digits; a hash of the id
    where nothing is left of it.

    >>> sample_stem(3, "animals/chelsea.png"), sample_stem(7, "../../etc/pass wd")
    ('000003-chelsea', '000007-pass_wd')
    >>> sample_stem(8, "///")
    '000008-732c4e97'
    """
    name = _IMAGE_ENDING.sub("", re.split(r"[/\\]", sample_id)[-1])
    readable = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name))[:_LONGEST].strip("._-")
    return f"{index:06d}-{readable or _hash(sample_id)}"


def folder_name(name: str) -> str:
    """Return a folder name: the given one where that is safe on every file system, else marked by a
    hash.

    >>> folder_name("layer1.0.conv1")
    'layer1.0.conv1'
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80]
    if safe == name and name.strip("."):
        return name
    return f"{safe.strip('.') or 'layer'}-{_hash(name)}"


def layer_folders(layers: Iterable[LayerEntry]) -> dict[str, str]:
    """Return layer → folder name, by their aliases.

    Aliases that differ in case only are told apart by a hash: some file systems cannot.
    """
    found = {layer.name: folder_name(layer.alias) for layer in layers}
    count = Counter(folder.casefold() for folder in found.values())
    return {
        name: folder if count[folder.casefold()] == 1 else f"{folder}-{_hash(name)}"
        for name, folder in found.items()
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
