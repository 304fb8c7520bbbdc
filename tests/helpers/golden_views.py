"""The activations that golden pictures are drawn of."""

import numpy as np

from pipeline.rendering.views import LayerView, SampleView, as_layer_view

RAMP = np.arange(64, dtype=np.float32).reshape(8, 8)
MAPS = np.stack([RAMP, RAMP.T * 2, RAMP[::-1] - 40, np.cos(RAMP / 9) * 30, RAMP**2 / 50])
IMAGE = np.stack([RAMP * 4, RAMP.T * 4, 255 - RAMP * 4], axis=-1).astype(np.uint8)
STATISTICS = {
    "min": np.array([-100, 0, -50, -30, 0], np.float32),
    "max": np.array([100, 126, 24, 30, 200], np.float32),
    "mean": np.array([1, 2, 3, 4, 5], np.float32),
    "std": np.array([1, 5, 2, 4, 3], np.float32),
}


def layer(values: np.ndarray = MAPS) -> LayerView:
    return as_layer_view(
        "conv", "conv", ("channel", "height", "width"), values, statistics=STATISTICS
    )


def sample(*layers: LayerView) -> SampleView:
    return SampleView(
        index=0, id="it", label_name="", model="tiny", image=IMAGE, layers=layers or (layer(),)
    )
