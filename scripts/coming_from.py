"""The tasks of the "coming from" pages: both sides are run, and their results compared.

    uv venv /tmp/peers --python 3.11
    uv pip freeze | grep -E '^torch(vision)?==' > /tmp/same  # the same torch: the same rounding
    uv pip install --python /tmp/peers --override /tmp/same \
        thingsvision torchlens torchextractor captum scikit-image
    uv run python scripts/coming_from.py --peers /tmp/peers/bin/python

On each page, the Python before the first task is common; then every task has the other tool's code
and ours, each of which ends with `result`. Without `--peers`, only ours is run.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measuring import parser_of

from pipeline.common.progress import table

PAGES = Path(__file__).resolve().parent.parent / ".github" / "docs" / "coming-from"
TOLERANCE = 1e-5  # of the largest magnitude: batches and memory formats differ


def tasks() -> Iterator[tuple[str, str, str, str]]:
    """Yield page, task, the other tool's program and ours."""
    (shared,) = python_in((PAGES / "index.md").read_text(encoding="utf-8"))
    for page in sorted(PAGES.glob("*.md")):
        head, *sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for section in sections if page.stem != "index" else ():
            if code := python_in(section):
                theirs, ours = ("\n".join([shared, *python_in(head), block]) for block in code)
                yield page.stem, section.splitlines()[0], theirs, ours


def python_in(text: str) -> list[str]:
    """Return the Python blocks of a document."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def result_of(python: str, program: str, folder: Path) -> np.ndarray:
    """Run a program in `folder` and return its `result`."""
    save = "import numpy\nnumpy.save('result.npy', numpy.asarray(result))\n"
    done = subprocess.run(
        [python, "-W", "ignore", "-c", program + save],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{program}\n{done.stderr}")
    return np.load(folder / "result.npy")


def main() -> None:
    parser = parser_of(__doc__, "only the first task of every page")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with the other tools")
    options = parser.parse_args()
    results: list[dict] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for page, task, theirs, ours in tasks():
            if options.quick and results and results[-1]["page"] == page:
                continue
            own = result_of(sys.executable, ours, Path(scratch))
            row = {"page": page, "task": task, "shape": list(own.shape), "difference": None}
            if options.peers:
                peer = result_of(options.peers, theirs, Path(scratch))
                if peer.shape != own.shape:
                    sys.exit(f"{page}: {task}: shapes differ: {peer.shape} and {own.shape}")
                row["difference"] = float(np.abs(peer - own).max() / np.abs(peer).max())
            results.append(row)
    columns = ["page", "task", "shape", "difference"]
    sys.stdout.write(
        json.dumps(results, indent=1) + "\n" if options.json
        else table(columns, [[str(row[name]) for name in columns] for row in results])
    )  # fmt: skip
    if wrong := [row["task"] for row in results if (row["difference"] or 0) > TOLERANCE]:
        sys.exit(f"different results: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
