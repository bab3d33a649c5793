"""How commands end: rlprune's own errors without a traceback, and exit statuses."""

from __future__ import annotations

import sys

import typer

INTERRUPTED = 130
BROKEN_OFF = 75
"""Exit status of a sweep that Ray or the storage has ended (EX_TEMPFAIL): try it again."""


class clean_errors:
    """Prints rlprune's own errors without a traceback and exits with their status."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from rlprune.errors import RlpruneError

        if isinstance(error, RlpruneError):
            typer.echo(f"rlprune: {error}", err=True)
            sys.exit(error.exit_status)
        if isinstance(error, KeyboardInterrupt):
            typer.echo("rlprune: stopped. Runs and sweeps go on with --resume.", err=True)
            sys.exit(INTERRUPTED)
