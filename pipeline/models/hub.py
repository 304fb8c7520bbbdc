"""Models from torch.hub: an entry point of a `hubconf.py`, in a local folder or on GitHub."""

from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.common.configured import configured
from pipeline.common.errors import ConfigError, known
from pipeline.common.network import PACKAGED, downloading
from pipeline.common.paths import PathText
from pipeline.models.base import ModelBundle, ModelSource
from pipeline.models.checkpoint import as_module, called
from pipeline.models.own_code import accepting_arguments, folder_kept
from pipeline.models.transforms import Transform


@configured
class HubModel(ModelSource):
    """An entry point of a torch.hub repository, whose code is run: use only trusted repositories.

    The default transform is ImageNet's (256, 224, its mean and std); see `model.transform.…`.

    Attributes:
        name: the entry point.
        repo: a folder with a `hubconf.py`, or `owner/name[:ref]` on GitHub.
        weights: `DEFAULT` keeps the weights of the entry point and its `arguments`; a path loads a
            state dict into the returned module; null uses seeded random weights (the entry point
            must not load any).
        arguments: passed to the entry point, e.g. `{pretrained: true}`.
        trust: must be true for a GitHub repository, whose code is downloaded and run.
    """

    type_key: ClassVar[str] = "hub"
    named_weights: ClassVar[bool] = False
    runs_code: ClassVar[str] = "runs the code of a torch.hub repository"
    compares_seeds: ClassVar[bool] = True

    repo: PathText
    arguments: dict[str, Any] = field(default_factory=dict)
    trust: bool = False

    def reads(self) -> dict[str, str]:
        folder = Path(self.repo).expanduser()
        return super().reads() | ({"model.repo": str(folder)} if folder.is_dir() else {})

    def fetches(self) -> str:
        return "" if Path(self.repo).expanduser().is_dir() else f"github.com/{self.repo}"

    def build(self, seed: int) -> ModelBundle:
        folder = Path(self.repo).expanduser()
        if folder.is_dir():
            if not (folder / "hubconf.py").is_file():
                raise ConfigError(f"model.repo: {folder} has no hubconf.py")
            result = called(f"{folder / 'hubconf.py'}:{self.name}", "model.name", self.arguments)
        else:
            result = self._downloaded()
        module = as_module(result, f"model.name: {self.name}")
        return ModelBundle(module=module, transform=Transform(), file=self.load_weights(module))

    @folder_kept()
    def _downloaded(self) -> Any:
        if self.repo.startswith((".", "/", "~")) or self.repo.count("/") != 1:
            raise ConfigError(f"model.repo: {self.repo} is neither a folder nor owner/name")
        if not self.trust:
            raise ConfigError(
                f"model.trust: the code of github.com/{self.repo} would be downloaded and run; set "
                "model.trust=true if you trust it"
            )
        import torch

        hub: Any = torch.hub
        instead = f"model.repo=FOLDER (a local clone) or {PACKAGED}"
        with downloading(f"model.repo: {self.repo}", instead):
            names = hub.list(self.repo, trust_repo=True)
            known(self.name, names, f"model.name: {self.repo} has no entry point")
            with accepting_arguments(self.name, TypeError):
                return hub.load(self.repo, self.name, trust_repo=True, **self.arguments)
