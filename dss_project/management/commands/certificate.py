"""`manage.py certificate`: make an authority and a certificate, to try TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser


class Command(BaseCommand):
    help = "Make a certificate for the service port, and an authority that signs it. For tests; a company has its own authority."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="+", help="host names and IP addresses of the nodes, or the name of a client")
        parser.add_argument(
            "--directory", type=Path, default=Path("tls"), help="where the files are; an authority that is there is used"
        )
        parser.add_argument(
            "--client", action="store_true", help="a certificate for a client (client.pem), not for nodes (node.pem)"
        )
        parser.add_argument("--days", type=float, default=None, help="how long it is valid (default: 397)")

    def handle(self, *args: Any, **options: Any) -> None:
        # It takes a while to load.
        from dss_project.certificates import DAYS, make_authority, make_certificate

        directory: Path = options["directory"]
        kind = "client" if options["client"] else "node"
        files = directory / f"{kind}.pem", directory / f"{kind}.key"
        authority = directory / "ca.pem", directory / "ca.key"
        days = DAYS if options["days"] is None else options["days"]
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_authority(*authority)
            made = make_certificate(*files, authority, options["names"], days=days, is_client=options["client"])
        except (OSError, ValueError) as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"Valid until {made.not_valid_after_utc:%Y-%m-%d} for {', '.join(options['names'])}.")
        if options["client"]:
            self.stdout.write(f"DSS_CLIENT_CERT_FILE={files[0].absolute()}\nDSS_CLIENT_KEY_FILE={files[1].absolute()}")
        else:
            self.stdout.write(f"DSS_TLS_CERT_FILE={files[0].absolute()}\nDSS_TLS_KEY_FILE={files[1].absolute()}")
            self.stdout.write(f"Clients: DSS_CA_FILE={authority[0].absolute()}")
