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


def pages() -> Iterator[tuple[str, list[str], str, str]]:
    """Yield page, tasks, the other tool's program and ours."""
    (shared,) = python_in((PAGES / "index.md").read_text(encoding="utf-8"))
    for page in sorted({*PAGES.glob("*.md")} - {PAGES / "index.md"}):
        head, *sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        code = {section.splitlines()[0]: python_in(section) for section in sections}
        tasks = [task for task, blocks in code.items() if blocks]
        common = "\n".join(["import numpy", "results = []", shared, *python_in(head)])
        theirs, ours = (
            common + "".join(f"\n{block}results.append(numpy.asarray(result))\n" for block in side)
            for side in zip(*(code[task] for task in tasks), strict=True)
        )
        yield page.stem, tasks, theirs, ours


def python_in(text: str) -> list[str]:
    """Return the Python blocks of a document."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def results_of(python: str, program: str, folder: Path) -> list[np.ndarray]:
    """Run a program in `folder` and return its `results`."""
    done = subprocess.run(
        [python, "-W", "ignore", "-c", f"{program}\nnumpy.savez('results.npz', *results)\n"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{program}\n{done.stderr}")
    with np.load(folder / "results.npz") as arrays:
        return [*arrays.values()]


def main() -> None:
    parser = parser_of(__doc__, "only the last page")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with the other tools")
    options = parser.parse_args()
    results: list[dict] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for page, tasks, theirs, ours in [*pages()][-1 if options.quick else 0 :]:
            own = results_of(sys.executable, ours, Path(scratch))
            peer = results_of(options.peers, theirs, Path(scratch)) if options.peers else own
            for task, a, b in zip(tasks, own, peer, strict=True):
                if a.shape != b.shape:
                    sys.exit(f"{page}: {task}: shapes differ: {b.shape} and {a.shape}")
                difference = float(np.abs(a - b).max() / np.abs(b).max()) if options.peers else None
                results.append({
                    "page": page, "task": task, "shape": list(a.shape), "difference": difference,
                })  # fmt: skip
    columns = ["page", "task", "shape", "difference"]
    sys.stdout.write(
        json.dumps(results, indent=1) + "\n" if options.json
        else table(columns, [[str(row[name]) for name in columns] for row in results])
    )  # fmt: skip
    if wrong := [row["task"] for row in results if (row["difference"] or 0) > TOLERANCE]:
        sys.exit(f"different results: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
