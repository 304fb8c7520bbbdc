"""Sweeps: what became of every job, in its own folder and in one table at the end.

Hydra lets the other jobs finish when one fails, but leaves no traceback in the failed job's log and
reports only the first failure. `SweepStatus` is a Hydra callback that mends this: it writes
`status.json` into each job's folder, the traceback into its log, and `summarize` gathers them into
`catalogue.csv` and a table.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from pipeline.archive import schema
from pipeline.durable import write_bytes, write_json
from pipeline.names import one_line
from pipeline.progress import size

STATUS = "status.json"
CATALOGUE = "catalogue.csv"
_COLUMNS = ("job", "state", "images", "bytes", "images_per_second", "seconds", "overrides", "error")


class SweepStatus(Callback):
    """Notes how each job of a sweep ended."""

    folder: Path | None = None
    """Folder of the sweep that this process has started, None where it has started none."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remember the sweep's folder."""
        SweepStatus.folder = Path(config.hydra.sweep.dir).absolute()

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Write a job's status, and its traceback into its log; does nothing outside a sweep."""
        if config.hydra.mode is not RunMode.MULTIRUN:
            return
        seconds = time.monotonic() - self._started
        folder = Path(config.hydra.runtime.output_dir)
        status: dict[str, Any] = {
            "job": folder.name,
            "overrides": " ".join(config.hydra.overrides.task),
            "seconds": round(seconds, 3),
        }
        if job_return.status is JobStatus.COMPLETED:
            archive = Path(str(config.archive)).expanduser()
            status |= {"state": "done", "archive": str(archive), **_amount(archive)}
        else:
            error = job_return._return_value
            status |= {"state": "failed", "error": one_line(error, limit=500)}
            logging.getLogger("pipeline.traceback").error("failed", exc_info=error)
        write_json(folder / STATUS, status)


def _amount(archive: Path) -> dict[str, int]:
    """Return the images and bytes of a complete archive, nothing for a part of one."""
    try:
        complete = json.loads((archive / schema.COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {"images": int(complete["samples"]), "bytes": int(complete["bytes"])}


def summarize(folder: Path) -> str:
    """Write a sweep's `catalogue.csv` and return a table of its jobs for people.

    A job without a status is one whose process died.

    Args:
        folder: of the sweep; a job is every folder in it that Hydra or a status marks as one.
    """
    jobs = [
        job for job in folder.iterdir() if (job / ".hydra").is_dir() or (job / STATUS).is_file()
    ]
    rows = [_row(job) for job in sorted(jobs, key=_by_number)]
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / CATALOGUE, text.getvalue().encode("utf-8"))
    done = sum(row["state"] == "done" for row in rows)
    return _table(rows) + f"sweep:    {folder}  ({done} of {len(rows)} jobs done)\n"


def _row(job: Path) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads((job / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        status = {"state": "died", "error": "its process ended without a word"}
    seconds, images = status.get("seconds") or 0, status.get("images") or 0
    rate = round(images / seconds, 2) if seconds and images else ""
    return {**status, "job": job.name, "images_per_second": rate}


def _by_number(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else 10**9, path.name)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [["job", "state", "images", "bytes", "images/s", "seconds", ""]]
    for row in rows:
        nbytes = size(row["bytes"]) if row.get("bytes") else ""
        what = row.get("error") if row["state"] != "done" else row.get("overrides", "")
        texts = [row["job"], row["state"], row.get("images", ""), nbytes]
        texts += [row["images_per_second"], row.get("seconds", ""), one_line(what or "", limit=90)]
        lines.append([str(text) for text in texts])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )
