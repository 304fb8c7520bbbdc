"""The command `cite`: how to cite an archive, and the facts to report."""

from typing import Any

from pipeline.archive.format import schema
from pipeline.cli.arguments import Options, add_command, say_results


def declare(commands: Any) -> None:
    """Add the subparser."""
    add_command(commands, "cite", cite, "path", as_json=True)


def cite(options: Options) -> int:
    """Print BibTeX for an archive, and facts to report: model, weights, dataset, versions."""
    from pipeline.archive.reading.archive import Archive
    from pipeline.archive.tools.provenance import citation, provenance

    facts, texts = [], []
    for path in schema.archives_of(options.path):
        with Archive.open(path) as archive:
            facts.append(provenance(archive))
            texts.append(citation(archive))
    say_results(facts, "\n".join(texts), options)
    return 0
