"""Vision models of Hugging Face transformers (install `featuremaps[transformers]`)."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.foundation.configured import configured
from pipeline.foundation.errors import ConfigError, one_line, suggestion
from pipeline.foundation.network import downloading, hub_answers_at_once, refuse_remote_code
from pipeline.inputs.transforms import Transform
from pipeline.layers.axes import Tokens
from pipeline.models.base import DEFAULT, Built, ModelSource
from pipeline.models.hf_processors import read_processor, transform_of

if TYPE_CHECKING:
    from torch import nn


@configured
class TransformersModel(ModelSource):
    """A vision backbone through `AutoModel`, with the transform of its image processor.

    No code of a repository is run (`trust_remote_code` stays off), and weights are read as
    safetensors or tensors only.

    Attributes:
        name: a hub name (`facebook/dinov2-small`), a local folder that `save_pretrained` wrote, or,
            with `weights: null`, a model type such as `vit`.
        weights: `DEFAULT` for those of `name`, or null for seeded random ones.
        arguments: changes to the model's configuration, e.g. `{image_size: 96}`.
    """

    kind: ClassVar[str] = "transformers"
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
        """See `ModelSource.reads`."""
        folder = Path(self.name).expanduser()
        return {"model.name": str(folder)} if folder.exists() else {}

    def fetches(self) -> str:
        """See `ModelSource.fetches`."""
        return f"the model {self.name}" if "/" in self.name and not self.reads() else ""

    def build(self, seed: int) -> Built:
        """See `ModelSource.build`."""
        try:
            import transformers
        except ImportError as error:
            raise ConfigError(
                "model: transformers is not installed; run: pip install 'featuremaps[transformers]'"
            ) from error
        if self.weights not in (None, DEFAULT):
            raise ConfigError(
                "model.weights: give DEFAULT (those of model.name, which may be a local folder) "
                "or null"
            )
        folder = Path(self.name).expanduser()
        where = str(folder) if folder.is_dir() else self.name
        types = list(transformers.CONFIG_MAPPING.keys())
        if self.weights is None and where in types:
            config = transformers.AutoConfig.for_model(where, **self.arguments)
            return self._built(self._fresh(transformers, config), config, None)
        if "/" not in where:
            raise ConfigError(
                f"model.name: {self.name!r} is no folder, no owner/name and no model type (with "
                f"model.weights=null); {suggestion(self.name, types)}"
            )
        with downloading(f"model.name: {self.name}"), hub_answers_at_once():
            config = transformers.AutoConfig.from_pretrained(where, **self.arguments)
            processor = read_processor(transformers, where)
            if self.weights is None:
                return self._built(self._fresh(transformers, config), config, processor)
            module = transformers.AutoModel.from_pretrained(where, config=config)
        return self._built(module, config, processor)

    def _fresh(self, transformers: Any, config: Any) -> nn.Module:
        try:
            module: nn.Module = transformers.AutoModel.from_config(config)
        except ValueError as error:
            raise ConfigError(f"model.name: {self.name}: {one_line(error)}") from error
        return module

    def _built(self, module: nn.Module, config: Any, processor: Any) -> Built:
        size = getattr(config, "image_size", None) or 224
        size = size if isinstance(size, int) else size[0]
        transform = Transform(
            resize=(size, size), crop=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        if processor is not None:
            channels = getattr(config, "num_channels", None)
            transform = transform_of(processor, self.transform, channels=channels)
        tokens = tokens_of(config, transform.override(self.transform))
        return Built(module=module, transform=transform, tokens=tokens)


def tokens_of(config: Any, transform: Transform) -> Tokens:
    """Return the patch grid, as far as a configuration tells, and how often stages halve it.

    A masked autoencoder's patches are a random choice in random order: a strip. Hiera's are in an
    order of their own.
    """
    kind, size = getattr(config, "model_type", ""), transform.size
    patch = getattr(config, "patch_size", None) or getattr(config, "strides", [None])[:1]
    if isinstance(patch, list | tuple) and len({*patch}) == 1:
        patch = patch[0]
    if not isinstance(patch, int) or size is None or kind == "hiera":
        return Tokens()
    grid = (size[0] // patch, size[1] // patch)
    if kind == "vit_mae":
        grid = (1, int(grid[0] * grid[1] * (1 - config.mask_ratio)))
    return Tokens(grid=grid, stages=len(getattr(config, "depths", None) or [1]))
