"""Where the packaged configuration is, and what there is to choose from."""

from pathlib import Path


def conf_folder() -> Path:
    """Return the folder of the packaged configuration.

    Inside a wheel, or beside the package in a checkout.
    """
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def choices(group: str) -> list[str]:
    """Return the names of a group's packaged configurations."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
