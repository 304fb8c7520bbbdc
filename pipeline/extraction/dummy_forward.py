"""Dummy forward: trace every layer with a batch of noise and with a single image.

Only names, calls, shapes and dtypes are kept; planning depends on them.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from pipeline.capture.activations import Activations
from pipeline.capture.hooks import Process, capture, refuse_what_hides_its_layers
from pipeline.capture.resolver import Layer, LayerResolver
from pipeline.capture.selector import MARK
from pipeline.capture.tensors import tensors_in
from pipeline.capture.trace import DUMMY_BATCH_SIZE, Trace, compared, record
from pipeline.common.errors import ConfigError, FeaturemapsError
from pipeline.datasets.samples import Subset
from pipeline.extraction.devices import choose_device, settings_restored
from pipeline.extraction.loader import of_a_worker
from pipeline.extraction.model_state import ModelState
from pipeline.extraction.pixels import image_shape
from pipeline.extraction.settings import Extraction
from pipeline.models.base import LoadedModel
from pipeline.models.own_code import failure
from pipeline.models.weights.loading_report import cast

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelTrace:
    """A model on its device, with the trace of its dummy forward."""

    config: Extraction
    model: LoadedModel
    device: torch.device
    image_shape: tuple[int, int, int]
    trace: Trace
    state: ModelState

    @property
    def selection(self) -> LayerResolver:
        """Resolver of the model's layers."""
        return LayerResolver(
            self.model.module,
            self.trace,
            image=self.image_shape,
            tokens=self.model.tokens,
            declared=self.config.model.axes,
        )

    @contextmanager
    def captured(
        self, layers: Sequence[Layer], process: Process | None = None, *, seed: int | None = None
    ) -> Iterator[Activations]:
        """Capture selected layers inside the block; then reset the model and torch's generator."""
        names = [layer.name for layer in layers]
        stop = len(names) if self.config.early_stop else None
        hooks = capture(self.model.module, names, process=process, stop_after=stop)
        random = torch.random.fork_rng(devices=[])
        with random, torch.no_grad(), self.state, hooks as activations:
            if seed is not None:
                torch.manual_seed(seed)
            yield activations


def trace_model(
    config: Extraction, images: Subset | None = None, *, functions: bool = False
) -> ModelTrace:
    """Load the model and run the dummy batch.

    Args:
        images: source of the input size if the transform leaves it open.
        functions: whether to trace the calls of torch functions even if none is selected.
    """
    device = choose_device(config.device)
    with model_failures_named("loading it"), settings_restored(compiled=config.compile):
        model = config.model.load(seed=config.seed)
        model.module.to(device)
    if images is not None:
        shape = image_shape(images, model.transform, config.loader)
    elif model.transform.size is not None:
        shape = (model.transform.channels, *model.transform.size)
    else:
        raise ConfigError(
            "model.transform: the weights' transform does not set the size of the images; "
            "set model.transform.crop=224 (or another size)"
        )
    functions = functions or any(MARK in pattern for pattern in config.layers.include)
    run = partial(_dummy_forward, model, device, shape, functions=functions)
    try:
        trace, state = run()
    except ConfigError as error:
        trace, state = _with_short_weights(model, run, error)
    return ModelTrace(
        config=config, model=model, device=device, image_shape=shape, trace=trace, state=state
    )


def _with_short_weights(
    model: LoadedModel, run: Callable[[], tuple[Trace, ModelState]], failure: ConfigError
) -> tuple[Trace, ModelState]:
    """Run a model whose code casts the images to the type that its weights had."""
    if model.short_types:
        cast(model.module, model.short_types)
        with suppress(ConfigError):
            traced = run()
            log.info("model: it casts images itself, so it runs in %s", model.weights_dtype)
            return traced
    raise failure


def _dummy_forward(
    model: LoadedModel, device: torch.device, shape: tuple[int, int, int], *, functions: bool
) -> tuple[Trace, ModelState]:
    refuse_what_hides_its_layers(model.module)
    advice = (
        "; set model.transform.resize and model.transform.crop to the size that the model takes, "
        "and one number as model.transform.mean and model.transform.std if it takes grey images; "
        "or see model.arguments (models of video clips are not supported)"
    )
    size = "×".join(str(n) for n in shape)
    images = dummy_batch(model, device, shape)
    difference = 0.0
    with model_failures_named(f"the dummy batch of {DUMMY_BATCH_SIZE} {size} images", advice):
        with ModelState(model.module) as state:
            calls = record(model.module, images, functions=functions)
            state.keep_changed()
        if functions:
            with torch.no_grad(), state:
                difference = _difference(model.module(images), calls.returned)
    with model_failures_named("a single image"), state:
        single = record(model.module, images[:1], functions=functions, penultimate=True)
    if difference:
        log.warning(
            "layers: the model's output changes by up to %.3g while function calls are captured "
            "(torch's fused path is not taken)", difference
        )  # fmt: skip
    return replace(compared(calls, single), difference=difference), state


def _difference(one: object, other: object) -> float:
    """Return the largest difference between two outputs of a model, non-finite values as 0."""
    pairs = zip(tensors_in(one).values(), tensors_in(other).values(), strict=True)
    return max((float((a - b).abs().nan_to_num(0, 0, 0).max()) for a, b in pairs), default=0.0)


@contextmanager
def model_failures_named(
    what: str, advice: str = "", *, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise a model's exceptions, `but` for some, as a one-line ConfigError about `what` it got.

    `advice` is appended to errors that may be about the images' shape.
    """
    try:
        yield
    except BaseException as error:
        # A worker's death is raised at any point of this process.
        if isinstance(error, (FeaturemapsError, KeyboardInterrupt, *but)) or of_a_worker(error):
            raise
        about_shapes = isinstance(error, (RuntimeError, ValueError, AssertionError, IndexError))
        text = failure(error)
        if isinstance(error, NotImplementedError) or not about_shapes or "type" in text:
            advice = ""
        raise ConfigError(f"model: {what} failed: {text}{advice}") from error


def dummy_batch(
    model: LoadedModel,
    device: torch.device,
    shape: tuple[int, int, int],
    count: int = DUMMY_BATCH_SIZE,
    seed: int = 0,
) -> torch.Tensor:
    """Return normalised noise images, the same for every call."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, size=(count, *shape), dtype=np.uint8)
    return model.transform.normalize(torch.from_numpy(noise).to(device))
