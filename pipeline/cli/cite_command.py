"""The command `cite`: how to cite an archive, and the facts to report."""

import argparse
import json
import sys
from typing import Any

from pipeline.archive.format import schema
from pipeline.cli.archive_commands import archive_argument


def declare(commands: Any) -> None:
    """Add the subparser."""
    text = "BibTeX for an archive, and facts to report: model, weights, dataset, versions"
    parser = commands.add_parser("cite", help=text, description=text)
    parser.add_argument("path", type=archive_argument)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(carry_out=cite)


def cite(options: argparse.Namespace) -> int:
    """Print citations of an archive, or of every archive of a sweep."""
    from pipeline.archive.reading.archive import Archive
    from pipeline.archive.tools.provenance import citation, provenance

    facts, texts = [], []
    for path in schema.archives_of(options.path):
        with Archive.open(path) as archive:
            facts.append(provenance(archive))
            texts.append(citation(archive))
    content = facts if len(facts) > 1 else facts[0]
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    sys.stdout.write(text if options.json else "\n".join(texts))
    return 0
