"""A fuzzer of archives: bytes of a file change, or values in its footer; then all is read."""

import hashlib
import random
import shutil
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import FeaturemapsError
from tests.helpers.planting import footer_of, header_of, replace_file, with_footer


class Mode(StrEnum):
    """What happens to a file, and how it is read."""

    DAMAGED = "damaged"  # random bytes, as a bad disk leaves them
    PLANTED = "planted"  # random bytes, the footer's digests of the whole computed again
    CRAFTED = "crafted"  # values in the footer, its digests computed again
    UNCHECKED = "unchecked"  # random bytes, opened with check=False


ODD = (
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    2**64 + 1,
    -(2**63),
    1.5,
    "",
    "float64",
    "gzip",
    None,
    [],
    {},
    True,
)


def digest_of_everything(path: Path, *, check: bool = True) -> str:
    """Read whatever an archive offers; return a digest of it."""
    digest = hashlib.sha256()

    def add(array: object) -> None:
        values = np.asarray(array)
        digest.update(repr((values.dtype.str, values.shape)).encode())
        digest.update(np.ascontiguousarray(values).tobytes())

    with Archive.open(path, check=check) as archive:
        digest.update(repr(list(archive.samples)).encode())
        for name, weights in archive.filters.items():
            digest.update(name.encode())
            add(weights)
        for row in range(len(archive)):
            add(archive.image(row))
        for layer in archive.layers.values():
            add(layer[:])
            add(layer[2, 0])
            add(layer.sample_max)
            add(layer.sample_mean)
            for name, figure in layer.statistics.items():
                digest.update(name.encode())
                add(figure)
    return digest.hexdigest()


def fuzz(archive: Path, whole: str, copy: Path, seed: int, mode: Mode) -> str:
    """Return how reading a changed copy of an archive, whose digest is `whole`, ends.

    `unharmed`, `refused`, `other data`, or, which must never be, `foreign …` or `slow`: two seconds
    of CPU time, which other processes do not lengthen.
    """
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(archive, copy)
    chance = random.Random(seed)
    where = chance.choice(
        ["archive.h5", *(f"shards/{p.name}" for p in (copy / "shards").iterdir())]
    )
    content = (copy / where).read_bytes()
    if mode is Mode.CRAFTED:
        footer = footer_of(content)
        size = footer["size"]
        for _ in range(chance.randint(1, 3)):
            _craft(footer, chance)
        replace_file(copy, where, *with_footer(content[:size], footer))
    else:
        changed = _with_other_bytes(content, chance)
        (copy / where).write_bytes(changed)
        if mode is Mode.PLANTED:
            footer = footer_of(content)
            body = changed[: footer["size"]]
            footer["header"] = header_of(body, footer)
            replace_file(copy, where, *with_footer(body, footer))
    before = time.process_time()
    try:
        read = digest_of_everything(copy, check=mode is not Mode.UNCHECKED)
        ending = "unharmed" if read == whole else "other data"
    except FeaturemapsError:
        ending = "refused"
    except Exception as error:  # noqa: BLE001 - what is looked for
        ending = f"foreign {type(error).__name__}: {error}"
    return ending if time.process_time() - before < 2 else "slow"


def _with_other_bytes(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        start = chance.choice((0, 0, max(0, len(content) - 8192), None))  # structure, footer
        stop = len(content) if start is None else min(len(content), start + 8192)
        changed[chance.randrange(start or 0, stop)] = chance.randrange(256)
    if chance.random() < 0.1:
        del changed[chance.randrange(len(changed)) :]
    return bytes(changed)


def _craft(node: Any, chance: random.Random) -> None:
    """Change one value somewhere in nested JSON, or remove it."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        keys = [key for key in keys if key not in ("rounding", "filters")]  # no damage shows there
        if not keys:
            return
        key = chance.choice(keys)
        value = node[key]
        if isinstance(value, (dict, list)) and value and chance.random() < 0.9:
            node = value
            continue
        if chance.random() < 0.15:
            del node[key]
        elif isinstance(value, int) and chance.random() < 0.5:
            node[key] = value + chance.choice((-1, 1, 4, 1024, -value))
        else:
            node[key] = chance.choice(ODD)
        return
