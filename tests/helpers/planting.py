"""Crafted archives: a file is changed, and every digest is computed again, as an attacker would."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_hexdigest

MAGIC = b"FMFOOT01"
TAIL = 24


def footer_of(content: bytes) -> dict[str, Any]:
    """Return the JSON of the footer at the end of a file."""
    length = int.from_bytes(content[-TAIL : -TAIL + 8], "little")
    footer: dict[str, Any] = json.loads(content[-TAIL - length : -TAIL])
    return footer


def with_footer(content: bytes, footer: dict[str, Any]) -> tuple[bytes, str]:
    """Return content with a footer, and the digest of that footer."""
    text = json.dumps(footer).encode()
    tail = len(text).to_bytes(8, "little") + xxh3_64_intdigest(text).to_bytes(8, "little") + MAGIC
    return content + text + tail, "xxh3-128:" + xxh3_128_hexdigest(text)


def header_of(content: bytes, footer: dict[str, Any]) -> str:
    """Return the digest of everything that is not rows."""
    tables = footer["tables"].values()
    rows = [extent for table in tables if not table["digest"] for extent in table["extents"]]
    digest, end = xxh3_128(), 0
    for offset, length in sorted(rows):
        digest.update(content[end:offset])
        end = max(end, offset + length)
    digest.update(content[end:])
    return digest.hexdigest()


def planted(source: Path, out: Path, where: str, change: Callable[[h5py.File], None]) -> Path:
    """Return a copy of an archive with the HDF5 content of one file changed; its footer fits."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    path = out / where
    pristine = path.read_bytes()
    footer = footer_of(pristine)
    with h5py.File(path, "r+") as file:
        change(file)
    content = path.read_bytes()
    for text in footer["texts"].values():
        offset, length, _ = text
        text[0] = len(content)
        content += pristine[offset : offset + length]
    footer |= {"size": len(content), "header": header_of(content, footer)}
    replace_file(out, where, *with_footer(content, footer))
    return out


def replace_file(archive: Path, where: str, content: bytes, digest: str) -> None:
    """Write a file of an archive, and its digest to COMPLETE.json."""
    (archive / where).write_bytes(content)
    complete = json.loads((archive / "COMPLETE.json").read_text())
    complete["files"][where] = digest
    (archive / "COMPLETE.json").write_text(json.dumps(complete))
