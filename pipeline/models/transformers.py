"""Vision models of Hugging Face transformers (install `featuremaps[transformers]`)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.capture.axes import Tokens
from pipeline.common.configured import configured
from pipeline.common.errors import ConfigError, reraised, suggestion
from pipeline.common.network import PACKAGED, library_reads, refuse_remote_code
from pipeline.models.base import DEFAULT, ModelBundle, ModelSource
from pipeline.models.hf_processors import cropped_to, read_processor, transform_of
from pipeline.models.own_code import accepting_arguments
from pipeline.models.transforms import Transform

if TYPE_CHECKING:
    from torch import nn

    from pipeline.models.weights.loading_report import LoadingReport

log = logging.getLogger(__name__)
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@configured
class TransformersModel(ModelSource):
    """A vision backbone from `AutoModel`, with the transform of its image processor.

    No repository code is run (`trust_remote_code` stays off); only tensors are read from weight
    files.

    Attributes:
        name: a hub name (`facebook/dinov2-small`), a local folder that `save_pretrained` wrote, or,
            with `weights: null`, a model type such as `vit`.
        weights: `DEFAULT` for the weights of `name`, or null for seeded random weights.
        arguments: changes to the model's configuration, e.g. `{image_size: 96}`.
    """

    type_key: ClassVar[str] = "transformers"
    safe_arguments: ClassVar[frozenset[str]] = frozenset(
        ("image_size", "patch_size", "num_channels", "hidden_size", "hidden_sizes", "depths",
         "num_hidden_layers", "num_attention_heads", "intermediate_size", "embed_dim", "num_heads",
         "window_size", "mlp_ratio", "qkv_bias", "num_register_tokens", "layer_norm_eps",
         "hidden_act", "num_labels", "drop_path_rate")
    )  # fmt: skip

    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_remote_code(self.arguments)

    def reads(self) -> dict[str, str]:
        return {} if self._folder is None else {"model.name": str(self._folder)}

    def fetches(self) -> str:
        return f"the model {self.name}" if "/" in self.name and not self.reads() else ""

    def build(self, seed: int) -> ModelBundle:
        with reraised("model", hint="; run: pip install 'featuremaps[transformers]'"):
            import transformers
            from transformers.utils.versions import require_version

            require_version("transformers>=4.56")  # the first whose models take `dtype`
        from pipeline.models.weights.hf_loading import (
            fresh,
            pretrained,
            takes,
            vision_tower,
            without_tower,
        )

        if self.weights not in (None, DEFAULT):
            raise ConfigError(
                f"model.weights: {self.weights!r} is not supported; use DEFAULT (the weights of "
                "model.name, which may be a local folder) or null"
            )
        types = list(transformers.CONFIG_MAPPING.keys())
        where, processor = self.name, None
        if self._folder is None and self.weights is None and self.name in types:
            configure = partial(transformers.AutoConfig.for_model, self.name)
            default = configure()
        else:
            where = self._where(types)
            with self._reading():
                configure = partial(
                    transformers.AutoConfig.from_pretrained, where, trust_remote_code=False
                )
                default, processor = configure(), read_processor(transformers, where)
        config = self._with_arguments(configure, default, vision_tower(transformers, default))
        tower = vision_tower(transformers, config)
        if tower is not None:
            tower.update({k: v for k, v in self.arguments.items() if hasattr(tower, k)})
            log.info("model.name: %s is a joint model; using its vision tower", self.name)
        if self.weights is None:
            module, report = fresh(transformers, self.name, config, tower), None
        else:
            with self._reading():
                module, report = pretrained(transformers, where, config, tower, self.prefix)
        if takes(module, "input_ids"):
            raise without_tower(module)
        return self._built(module, tower or config, processor, report)

    def _with_arguments(self, configure: Callable[..., Any], default: Any, tower: Any) -> Any:
        """Return the configuration with `arguments`; transformers says nothing of unknown ones."""
        defaults = {**default.to_dict(), **(tower.to_dict() if tower is not None else {})}
        for key in self.arguments:
            owners = (default, tower)
            if not any(hasattr(owner, name) for owner in owners for name in (key, f"_{key}")):
                log.warning(
                    "model.arguments.%s: %s has no such setting, so it changes nothing; %s",
                    key, self.name, suggestion(key, defaults, every=True),
                )  # fmt: skip
        with accepting_arguments(self.name):
            return configure(**self.arguments) if self.arguments else default

    @property
    def _folder(self) -> Path | None:
        """The local folder that `name` specifies; a bare name requires a `config.json` in it."""
        folder = Path(self.name).expanduser()
        is_path = "/" in self.name or (folder / "config.json").is_file()
        return folder.absolute() if is_path and folder.is_dir() else None

    def _where(self, types: list[str]) -> str:
        """Return the local folder or hub name."""
        if self._folder is not None:
            if not (self._folder / "config.json").is_file():
                raise ConfigError(
                    f"model.name: {self._folder} has no config.json; use a folder that "
                    "save_pretrained wrote"
                )
            return str(self._folder)
        if Path(self.name).expanduser().exists() or not _HUB_NAME.fullmatch(self.name):
            hint = suggestion(self.name, types)
            if self.name in types:
                hint = "with model.weights=null it is a model type with random weights"
            raise ConfigError(
                f"model.name: {self.name!r} is not a folder with a config.json, an owner/name or a "
                f"model type (with model.weights=null); {hint}"
            )
        return self.name

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Convert errors while a folder or hub repository is read to one line."""
        from transformers.utils import logging as reports

        verbosity, bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
        reports.set_verbosity_error()  # LoadingReport replaces its table of keys
        reports.disable_progress_bar()
        # The configuration is downloaded even with model.weights=null.
        subject = f"model.name: {self.name}" if self._folder is None else ""
        instead = f"model.name=FOLDER (made by save_pretrained) or {PACKAGED}"
        try:
            with library_reads(self.name, subject, instead):
                yield
        finally:
            reports.set_verbosity(verbosity)
            if bars:
                reports.enable_progress_bar()

    def _built(
        self, module: nn.Module, config: Any, processor: Any, report: LoadingReport | None
    ) -> ModelBundle:
        size = _height_width(getattr(config, "image_size", None))
        transform = Transform(
            resize=size or (224, 224), crop=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        if processor is not None:
            channels = getattr(config, "num_channels", None)
            transform = transform_of(processor, self.transform, channels=channels)
            if size is not None and not self.transform.geometry:
                transform = cropped_to(transform, size)
        return ModelBundle(
            module=module,
            transform=transform,
            tokens=tokens_of(config, transform.override(self.transform)),
            report=report,
        )


def _height_width(size: Any) -> tuple[int, int] | None:
    """Return an `image_size` (a side, a pair or a mapping) as height and width."""
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, int):
        size = (size, size)
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(n, int) for n in size):
        return size[0], size[1]
    return None


def tokens_of(config: Any, transform: Transform) -> Tokens:
    """Return the patch grid, if the configuration defines it, and the number of stages.

    A masked autoencoder's patches are a random sample in random order, so they form a strip. Hiera
    reorders its patches, so it has no grid.
    """
    kind, size = getattr(config, "model_type", ""), transform.size
    patch = getattr(config, "patch_size", None)
    if hasattr(config, "patch_sizes"):  # CNNs have only strides
        patch = patch or getattr(config, "strides", [None])[:1]
    if isinstance(patch, list | tuple) and len({*patch}) == 1:
        patch = patch[0]
    if not isinstance(patch, int) or size is None or kind == "hiera":
        return Tokens()
    grid = (size[0] // patch, size[1] // patch)
    if kind == "vit_mae":
        grid = (1, int(grid[0] * grid[1] * (1 - config.mask_ratio)))
    return Tokens(grid=grid, stages=len(getattr(config, "depths", None) or [1]))
