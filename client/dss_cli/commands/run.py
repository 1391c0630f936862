"""Runs a command line: how errors are shown, and the exit statuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from dss_cli.commands.common import Common
from dss_cli.commands.root import dss

REFUSED = 1
USAGE = 2
UNAVAILABLE = 3
UNKNOWN_OUTCOME = 4
#: as of a program that SIGINT has ended
INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """Run `dss` with these arguments. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    common = Common()
    try:
        result = dss.main(list(arguments), prog_name="dss", standalone_mode=False, obj=common)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "dss"
        common.complain(f"{path}: {error.format_message()} See {path} --help.")
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:
        return _failed(error, common)
    return result if isinstance(result, int) else 0


def _failed(error: Exception, common: Common) -> int:
    """Show an error that is not a fault of this program."""
    from dss_cli.backup import BackupInvalid
    from dss_cli.cluster import CommandFailed
    from dss_cli.find_cluster import CannotChoose
    from dss_client import Refused, Unavailable, UnknownOutcome, WrongUse

    document: dict[str, object] = {"ok": False, "code": getattr(error, "code", ""), "detail": str(error)}
    match error:
        case Refused():
            status = REFUSED
            document = {**error.fields, **document, "detail": error.detail}
        case WrongUse() | CannotChoose():
            status = USAGE
        case Unavailable():
            status = UNAVAILABLE
        case UnknownOutcome():
            status = UNKNOWN_OUTCOME
        case CommandFailed() | BackupInvalid():
            status = REFUSED
        case OSError():
            status = REFUSED
            document["detail"] = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        case _:
            raise error
    if common.json:
        common.complain(json.dumps(document, ensure_ascii=False, default=str))
    else:
        text = document["detail"] if isinstance(error, OSError) else str(error)
        common.complain(f"dss: {text}{_hint(error)}")
    return status


def _hint(error: Exception) -> str:
    """What the operator wants to know in addition."""
    from dss_client import LockTimeout, WrongToken

    if isinstance(error, WrongToken):
        return ". Set DSS_TOKEN, or give --token"
    if isinstance(error, LockTimeout) and error.holders:
        return f". Held by {', '.join(holder['client'] for holder in error.holders)}"
    return ""
