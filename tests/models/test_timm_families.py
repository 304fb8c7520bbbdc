"""One model of every timm family: its pixels are timm's, tokens in place, no random layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.common.errors import WeightsError
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.dummy_forward import trace_model
from pipeline.extraction.settings import Extraction
from pipeline.models.timm import TimmModel
from tests.helpers.model_checks import misplaced_tokens
from tests.helpers.timm_families import FAMILIES

timm = pytest.importorskip("timm")
FEW = ("deit_tiny_distilled_patch16_224", "gmlp_ti16_224")
WITH_TOKENS = {"test_vit", "deit_tiny_distilled_patch16_224", "gmlp_ti16_224", "volo_d1_224"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=[pytest.mark.broad] * (n not in FEW) + [pytest.mark.slow] * (n in FEW[1:])
        )
        for n in FAMILIES
    ],
)
@pytest.mark.filterwarnings("ignore")  # of the models' own code
def test_family(name: str, tmp_path: Path) -> None:
    traced = trace_model(
        Extraction(model=TimmModel(name=name, weights=None), dataset=Synthetic(samples=1),
                   device="cpu")
    )  # fmt: skip
    module, transform = traced.model.module, traced.model.transform

    own = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    for height, width in ((300, 300), (200, 333)):
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        fed = transform.normalize(torch.from_numpy(transform.pixels(image))[None])[0]
        torch.testing.assert_close(fed, own(image), rtol=1e-5, atol=1e-5)

    wrong, right = misplaced_tokens(traced)
    assert not wrong, wrong
    assert right or name not in WITH_TOKENS

    state = {key: torch.zeros_like(value) for key, value in module.state_dict().items()}
    lacking = [key for key, _ in module.named_parameters()][-1]
    del state[lacking]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError) as refused:
        TimmModel(name=name, weights=str(tmp_path / "part.pth")).load()
    assert lacking in str(refused.value)
