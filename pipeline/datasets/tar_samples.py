"""Samples in tar files: members `key.jpg`, `key.cls`, … of one folder belong together.

One pass over the headers finds every member's offset. Images are then read by random access, so
order, length and workers behave as for any other dataset.
"""

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import ConfigError, SampleError, one_line, reraised
from pipeline.datasets.base import nfc
from pipeline.datasets.samples import Sample
from pipeline.datasets.sequence import digest_of
from pipeline.datasets.walk import is_litter

Members = Mapping[str, tarfile.TarInfo]
"""Ending in lower case, with its dot → member."""


@dataclass(frozen=True)
class TarImages:
    """An opened dataset: `extents[i]` is the tar file, offset and size of image i."""

    samples: Sequence[Sample]
    extents: Sequence[tuple[Path, int, int]]

    def read(self, index: int) -> bytes:
        path, offset, size = self.extents[index]
        with reraised(str(path), SampleError, OSError), path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) != size:
            raise SampleError(f"{path}: truncated within {self.samples[index].id}")
        return content

    def digest(self, count: int) -> str:
        return digest_of(self.read(index) for index in range(count))


def samples_in(path: Path, *, last_dot: bool) -> Mapping[str, Members]:
    """Return key → members in the file's order, without hidden files and folders.

    Args:
        path: an uncompressed tar file.
        last_dot: whether a key ends at the last dot of a member's name, not at the first.
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    files: dict[str, tarfile.TarInfo] = {}
    if not path.is_file():
        raise ConfigError(f"dataset.shards: {path}: not a regular file")
    text = f"dataset.shards: {path} is not a readable uncompressed tar file"
    opened = reraised(text, of=(OSError, tarfile.TarError))
    with opened, tarfile.open(path, "r:") as archive:  # uncompressed: members have offsets
        for member in archive:
            *folders, name = (n for n in nfc(member.name).split("/") if n not in (".", ".."))
            base, dot, ending = name.rpartition(".") if last_dot else name.partition(".")
            content = files.get(member.linkname) if member.islnk() else member
            if content is None or not content.isreg():
                continue
            files[member.name] = content
            if not base or not dot or any(map(is_litter, (*folders, name))):
                continue
            if content.issparse():
                raise ConfigError(
                    f"dataset.shards: {path}: {one_line(member.name)} is stored as a sparse "
                    "file; create the tar file without --sparse"
                )
            members = samples.setdefault("/".join((*folders, base)), {})
            if members.setdefault(f".{ending.lower()}", content) is not content:
                raise ConfigError(
                    f"dataset.shards: {path}: {one_line(member.name)} occurs twice (names "
                    "that differ only in case or Unicode form count as equal)"
                )
        archive.fileobj.seek(archive.offset)  # tarfile stops at a damaged header, too
        rest = archive.fileobj.read(2 * tarfile.RECORDSIZE)  # `cat` leaves the next file in it
        if rest.strip(b"\0") or len(rest) % tarfile.BLOCKSIZE:
            raise tarfile.ReadError(
                f"damaged, truncated or followed by another file at byte {archive.offset}"
            )
    return samples


def text_of(path: Path, member: tarfile.TarInfo) -> str:
    """Return a member's text, at most its first MiB."""
    with path.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(min(member.size, 2**20)).decode("utf-8-sig", "replace").strip()
