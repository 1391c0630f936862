"""The first user of the admin, created at the node's first start."""

from __future__ import annotations

import secrets
from pathlib import Path

from django.contrib.auth import get_user_model

from dss_project import secret_files
from dss_project.config import NodeConfig

USERNAME = "admin"
PASSWORD_BYTES = 12


def password_file(config: NodeConfig) -> Path:
    return Path(config.data_dir) / "admin-password"


def ensure(config: NodeConfig) -> bool:
    """Create `admin` if there is no user. Returns True if it was created.

    The password is DSS_ADMIN_PASSWORD, or a random one that is written to `<data dir>/admin-password`.
    """
    users = get_user_model()
    if users.objects.exists():
        return False
    password = config.admin_password
    if not password:
        path = password_file(config)
        secret_files.keep(path, secrets.token_urlsafe(PASSWORD_BYTES))
        password = secret_files.read_or_make(path)
    users.objects.create_superuser(USERNAME, password=password)
    return True
