"""Completion in a shell: commands, and for those that take overrides groups, choices, keys, values.

Hydra's own completion finds what there is; here it meets this program's commands.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from pipeline import override_commands
from pipeline.errors import ConfigError
from pipeline.names import suggestion

_SCRIPTS = {
    "bash": """\
_featuremaps() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n' head=
    local word="${line##* }"
    COMPREPLY=($(featuremaps completion words "$line" 2>/dev/null))
    case "$COMP_WORDBREAKS" in *=*) head="${word%"${word##*=}"}" ;; esac
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
    case "${#COMPREPLY[@]}${COMPREPLY[0]}" in 0*|*[=./]) ;; 1*) COMPREPLY[0]+=" " ;; esac
}
complete -o nospace -o default -F _featuremaps featuremaps
""",
    "zsh": """\
#compdef featuremaps
_featuremaps() {
    local -a found
    found=(${(f)"$(featuremaps completion words "${BUFFER[1,CURSOR]}" 2>/dev/null)"})
    if (( $#found )); then
        compadd -S '' -- $found
    else
        compset -P '*='
        _files
    fi
}
(( $+functions[compdef] )) || { autoload -U compinit; compinit; }
compdef _featuremaps featuremaps
""",
    "fish": """\
complete -c featuremaps -f -a '(featuremaps completion words "$(commandline -cp)")'
complete -c featuremaps -F -n 'not __fish_seen_subcommand_from run extract render layers plan'
""",
}


def script(shell: str) -> str:
    """Return what a shell evaluates to complete `featuremaps`.

    Raises:
        ConfigError: when there is none for this shell.
    """
    if shell not in _SCRIPTS:
        raise ConfigError(f"completion: no shell {shell!r}; {suggestion(shell, _SCRIPTS)}")
    return _SCRIPTS[shell]


def complete(line: str, commands: Collection[str]) -> list[str]:
    """Return what the last word of a command line may become; nothing where it may be anything.

    Args:
        line: the command line up to the cursor, beginning with the program.
        commands: every command's name.
    """
    words = line.split()
    if line.endswith(" "):
        words.append("")
    if len(words) <= 2:
        return sorted(name for name in commands if len(words) == 2 and name.startswith(words[1]))
    if words[1] not in override_commands.COMMANDS:
        return []
    return _overrides(words[1], words[2:-1], words[-1])


def _overrides(command: str, before: list[str], word: str) -> list[str]:
    """Return what an override may become, given those before it."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from pipeline import config
    from pipeline.conf import conf_folder

    root = command if command in ("run", "render") else "extract"
    key, equals, value = word.partition("=")
    done = value[: max(value.rfind(","), value.rfind("[")) + 1]  # of a sweep or a list
    given = [other for other in before if not other.startswith("-")]
    config.register(root)
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            composed = loader.load_configuration(root, given, RunMode.RUN)
            if equals and (choices := config.choices_at(composed, key)):
                found = [f"{key}={choice}" for choice in choices]
            else:
                asked = f"{key}{equals}{value.removeprefix(done)}"
                plugin = DefaultCompletionPlugin(loader)
                found = plugin._query(root, " ".join([*given, asked]))
    except (HydraException, OmegaConfBaseException):
        return []  # the overrides before it do not compose: running them says why
    found = [f"{key}={done}{other.removeprefix(key + '=')}" if done else other for other in found]
    known = {*composed, *composed.hydra.runtime.choices} - ({"hydra"} if not word else set())
    return [
        other
        for other in found
        if other.startswith(word)
        and "_target_" not in other
        and re.split("[.=/@]", other.lstrip("+~"))[0] in known
    ]
