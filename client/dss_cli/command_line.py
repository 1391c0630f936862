"""The entry point `dss`."""

from __future__ import annotations

import sys

MISSING = "dss needs packages that are not installed here: pip install 'dss-client[cli]'"


def main() -> None:
    """Run the command of `sys.argv`."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        sys.exit(MISSING)
    from dss_cli.commands import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
