"""Readable file names that are safe for any sample id and layer name."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from pipeline.archive.format.layer_entry import LayerEntry

_IMAGE_ENDING = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif|ppm)$", re.IGNORECASE)
_LONGEST = 40


def sample_stem(index: int, sample_id: str) -> str:
    """Return the file stem of a sample's pictures and pages; never a path.

    The stem is the row and the last component of the id with unsafe characters replaced, or a hash
    of the id if no safe character is left.

    >>> sample_stem(3, "animals/chelsea.png"), sample_stem(7, "../../etc/pass wd")
    ('000003-chelsea', '000007-pass_wd')
    >>> sample_stem(8, "///")
    '000008-732c4e97'
    """
    name = _IMAGE_ENDING.sub("", re.split(r"[/\\]", sample_id)[-1])
    readable = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name))[:_LONGEST].strip("._-")
    return f"{index:06d}-{readable or _hash(sample_id)}"


def folder_name(name: str) -> str:
    """Return `name` if it is a safe folder name on every file system, else a safe one with a hash.

    >>> folder_name("layer1.0.conv1")
    'layer1.0.conv1'
    """
    safe = re.sub(r"[^A-Za-z0-9._@-]", "_", name)[:80]
    if safe == name and name.strip("."):
        return name
    return f"{safe.strip('.') or 'layer'}-{_hash(name)}"


def layer_folders(layers: Iterable[LayerEntry]) -> dict[str, str]:
    """Return layer → folder name, from the layers' aliases.

    Aliases that differ only in case get a hash, for case-insensitive file systems.
    """
    folders = {layer.name: folder_name(layer.alias) for layer in layers}
    count = Counter(folder.casefold() for folder in folders.values())
    return {
        name: folder if count[folder.casefold()] == 1 else f"{folder}-{_hash(name)}"
        for name, folder in folders.items()
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
