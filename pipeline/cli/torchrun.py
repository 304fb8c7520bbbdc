"""torchrun: each rank extracts one shard of an archive, in its own run folder.

torchrun starts the same command `WORLD_SIZE` times with different `RANK`s, which would otherwise
share one run folder and one log.
"""

from collections.abc import Mapping, Sequence

from pipeline.cli.overrides import is_sweep
from pipeline.common.errors import ConfigError

_RUN_FOLDER = "hydra.run.dir="
_DEFAULT_RUN_FOLDER = "outputs/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}"


def for_this_rank(
    command: str, overrides: Sequence[str], environment: Mapping[str, str]
) -> list[str]:
    """Return the overrides of this rank, with its shard and its run folder, if there are others."""
    rank, world = environment.get("RANK"), environment.get("WORLD_SIZE")
    if rank is None or world in (None, "1"):
        return list(overrides)
    if command == "render" or is_sweep(overrides):
        subject = "a sweep" if command != "render" else "render"
        raise ConfigError(f"torchrun: {subject} runs in one process; start it without torchrun")
    if any(word.lstrip("+").startswith("shard.") for word in overrides):
        raise ConfigError(
            "shard: torchrun sets the shard itself (RANK, WORLD_SIZE); remove shard.*"
        )
    if not any(word.startswith("archive=") for word in overrides):
        raise ConfigError(
            "archive: is required with torchrun, as all ranks write one archive; set archive=PATH"
        )
    folders = [word for word in overrides if word.startswith(_RUN_FOLDER)]
    folder = folders[-1].removeprefix(_RUN_FOLDER) if folders else _DEFAULT_RUN_FOLDER
    return [
        *(word for word in overrides if word not in folders),
        f"shard.index={rank}",
        f"shard.count={world}",
        f"{_RUN_FOLDER}{folder}/rank-{rank}",
    ]
