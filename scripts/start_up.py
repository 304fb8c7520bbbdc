"""How long commands take to start, against importing Hydra and h5py, which none can avoid.

Prints one table, medians of interleaved rounds, measured in one run:

    uv run python scripts/start_up.py
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from measuring import medians, parser_of


def main() -> None:
    parser = parser_of(__doc__, "one round, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        seconds = measure(Path(scratch), rounds)
    if options.json:
        print(json.dumps(seconds, indent=1))
        return
    unit = seconds["import hydra, h5py"]
    print(f"{'':36} seconds   / import hydra, h5py")
    for name, taken in seconds.items():
        print(f"{name:36} {taken:7.2f} {taken / unit:10.2f}")


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Return command → median seconds."""
    archive = folder / "archive"
    tool = [sys.executable, "-m", "pipeline.cli"]
    one_image = ["model=tiny", "dataset=synthetic", "dataset.samples=1", "device=cpu"]
    commands = {
        "import hydra, h5py": [sys.executable, "-c", "import hydra, h5py"],
        "import torch, torchvision": [sys.executable, "-c", "import torch, torchvision"],
        "--help": [*tool, "--help"],
        "run --help": [*tool, "run", "--help"],
        "info": [*tool, "info", str(archive)],
        "verify": [*tool, "verify", str(archive)],
        "render, one sample": [*tool, "render", f"archive={archive}"],
        "extract, to its first and only batch": [*tool, "extract", *one_image],
    }
    extract = [*tool, "extract", *one_image, f"archive={archive}"]
    subprocess.run([*extract, f"hydra.run.dir={folder / 'made'}"], check=True, capture_output=True)

    def run(name: str) -> None:
        folders = [f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}"]
        command = commands[name] + folders * name.startswith(("render", "extract"))
        subprocess.run(command, check=True, capture_output=True)

    return medians({name: partial(run, name) for name in commands}, rounds)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    main()
