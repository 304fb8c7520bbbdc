"""Similarity against thingsvision and rsatoolbox, in an environment of theirs.

uv venv peers && VIRTUAL_ENV=peers uv pip install thingsvision rsatoolbox
FEATUREMAPS_PEERS=peers/bin/python uv run pytest -m broad tests/similarity/test_similarity_peers.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline import similarity
from tests.helpers.random_archives import archive_of, correlated

PEERS = os.environ.get("FEATUREMAPS_PEERS", "")
THEIRS = """
import json, sys
import numpy as np
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm, compare
from thingsvision.core.cka import get_cka

x, y = (np.load(path).astype(np.float64) for path in sys.argv[1:3])
cka = get_cka(backend="numpy", m=len(x), kernel="linear", unbiased=True)
rdms = [calc_rdm(Dataset(v), method="correlation") for v in (x, y)]
rsa = compare(*rdms, method="spearman")
print(json.dumps({"cka": float(cka.compare(X=x, Y=y)), "rsa": float(np.asarray(rsa).item())}))
"""


@pytest.mark.broad
@pytest.mark.skipif(not PEERS, reason="set FEATUREMAPS_PEERS to the Python of their environment")
@pytest.mark.parametrize("widths", [(12, 20), (12, 300)])
def test_peers_agree(widths: tuple[int, int], tmp_path: Path) -> None:
    arrays = correlated(120, widths)
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    files = [str(tmp_path / f"{name}.npy") for name in arrays]
    command = [PEERS, "-c", THEIRS, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    path = archive_of(tmp_path / "archive", arrays, 3)
    ours = similarity(path, measures=("cka", "rsa"), bootstrap=0)
    assert ours.matrix("cka")[0, 1] == pytest.approx(theirs["cka"], abs=1e-9)
    assert ours.matrix("rsa")[0, 1] == pytest.approx(theirs["rsa"], abs=1e-9)
