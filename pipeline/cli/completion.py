"""Shell completion of overrides: groups, choices, keys, and values of enumerations."""

from pipeline.cli.overrides import GROUPS, choices_in
from pipeline.common.paths import local_path
from pipeline.config.config_docs import choices
from pipeline.config.keys import choices_at, known_keys

_GROUPS_ALONE = ("experiment", "launch", "sweep")  # groups without keys


def words(root: str, word: str, config_dir: str | None = None) -> list[str]:
    """Return the completions of a partial override, given `--config-dir`."""
    folders = [local_path(config_dir).absolute()] if config_dir else []
    key, equals, value = word.partition("=")
    if equals:
        prefix = value[: max(value.rfind(","), value.rfind("[")) + 1]  # of a sweep or a list
        values = choices_at(root, key) or choices_in(key.lstrip("+"), folders)
        return [
            f"{key}={prefix}{name}"
            for name in values
            if name.startswith(value.removeprefix(prefix))
        ]
    start = word[: word.rfind(".") + 1]
    names = {
        known.removeprefix(start).partition(".")[:2]
        for known in known_keys(root)
        if known.startswith(start)
    }
    completions = {f"{start}{name}{dot or '='}" for name, dot in names}
    if not start:
        groups = (*(name for name, _ in names if choices(name)), *_GROUPS_ALONE)
        own = [path.name for folder in folders for path in folder.glob("*") if path.is_dir()]
        completions |= {f"{name}=" for name in groups}
        completions |= {f"+{name}=" for name in own if name not in GROUPS}
    return sorted(text for text in completions if text.startswith(word))
