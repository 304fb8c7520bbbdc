"""Names: the nearest valid one for a mistyped one.

And file names that are safe for any sample id.
"""

import difflib
import hashlib
import re
from collections.abc import Iterable


def nearest(wrong: str, valid: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return up to `limit` valid names that look most like `wrong`, best first.

    >>> nearest("resnet81", ["vgg11", "resnet18", "resnet50"])
    ['resnet18']
    """
    names = sorted(set(valid))
    folded = {name.casefold(): name for name in reversed(names)}
    folded_wrong = wrong.casefold()
    found = difflib.get_close_matches(folded_wrong, list(folded), n=limit, cutoff=0.55)
    likeness = [difflib.SequenceMatcher(None, name, folded_wrong).ratio() for name in found]
    return [
        folded[name]
        for name, ratio in zip(found, likeness, strict=True)
        if ratio >= likeness[0] - 0.1
    ]


def suggestion(wrong: str, valid: Iterable[str]) -> str:
    """Return the end of an error line that helps with a mistyped name: near names, or the valid
    ones.

    >>> suggestion("gird", ["grid", "pca"])
    'did you mean grid?'
    >>> suggestion("x", ["grid", "pca"])
    'choose from: grid, pca'
    """
    names = list(dict.fromkeys(valid))
    near = nearest(wrong, names)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if not names:
        return "there are none to choose from"
    shown = ", ".join(names[:12])
    return f"choose from: {shown}" + (f", … ({len(names)} in all)" if len(names) > 12 else "")


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


def one_line(text: object, *, limit: int = 500) -> str:
    """Return `text` as a single printable line: control characters and line breaks become spaces.

    >>> one_line("a" + chr(10) + "b" + chr(27) + "[31m")
    'a b [31m'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
