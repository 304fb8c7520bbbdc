"""Archives whose recorded configuration was edited."""

import json
import shutil
from pathlib import Path
from typing import Any


def edited(archive: Path, out: Path, **changes: Any) -> Path:
    """Return a copy of an archive whose recorded configuration says something else."""
    shutil.copytree(archive, out)
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"] |= changes
    path.write_text(json.dumps(manifest))
    return out
