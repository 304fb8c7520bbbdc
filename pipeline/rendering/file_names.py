"""Names: the nearest valid one for a mistyped one.

And file names that are safe for any sample id.
"""

import hashlib
import re


def sample_stem(index: int, sample_id: str) -> str:
    """Return the file stem of a sample's pictures and pages: never a path, whatever the id holds.

    >>> sample_stem(7, "../../etc/passwd")
    '000007-3754d6cb3a38'
    """
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{index:06d}-{digest[:12]}"


def folder_name(layer: str) -> str:
    """Return a folder name for a layer: its name where that is safe on every file system, else
    marked by a hash.

    >>> folder_name("layer1.0.conv1")
    'layer1.0.conv1'
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", layer)[:80]
    if safe == layer and layer.strip("."):
        return layer
    return f"{safe.strip('.') or 'layer'}-{hashlib.sha256(layer.encode()).hexdigest()[:8]}"
