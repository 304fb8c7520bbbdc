"""Hostile archives: a file is changed, and every digest is made anew, as an attacker would."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from pipeline.foundation.atomic_files import file_sha256

TAIL = struct.Struct("<QQ8s")


def seal_text(content: bytes) -> dict[str, object]:
    """Return what the seal at the end of a file says."""
    length, _, _ = TAIL.unpack(content[-TAIL.size :])
    found: dict[str, object] = json.loads(content[-TAIL.size - length : -TAIL.size])
    return found


def sealed(content: bytes, said: dict[str, object]) -> tuple[bytes, str]:
    """Return content with a seal that says so and fits it, and the seal's digest."""
    extents = [*said["rows"].values(), *(one for some in said["chunks"].values() for one in some)]  # type: ignore[attr-defined]
    rest, at = b"", 0
    for offset, length in sorted(extents):
        rest += content[at:offset]
        at = offset + length
    header = xxh3_128_hexdigest(rest + content[at:])
    text = json.dumps({**said, "size": len(content), "header": header}).encode()
    tail = TAIL.pack(len(text), xxh3_64_intdigest(text), b"FMSEAL02")
    return content + text + tail, "xxh3-128:" + xxh3_128_hexdigest(text)


def planted(source: Path, out: Path, where: str, change: Callable[[h5py.File], None]) -> Path:
    """Return a copy of an archive with one file changed, and every digest made anew."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    path = out / where
    with h5py.File(path, "r+") as file:
        change(file)
    if where == "archive.h5":
        digest = file_sha256(path)
    else:
        content, digest = sealed(path.read_bytes(), seal_text((source / where).read_bytes()))
        path.write_bytes(content)
    complete = json.loads((out / "COMPLETE.json").read_text())
    complete["files"][where] = digest
    (out / "COMPLETE.json").write_text(json.dumps(complete))
    return out
