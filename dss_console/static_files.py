"""CSS and scripts of the admin, the browsable API and the API docs, served from the installed packages without collectstatic."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.staticfiles.finders import AppDirectoriesFinder
from servestatic import ServeStaticASGI


def static_files(otherwise: Any) -> Any:
    """An ASGI application over every app's `static` folder; other requests go to `otherwise`."""
    files = ServeStaticASGI(otherwise, max_age=3600)
    for storage in AppDirectoriesFinder().storages.values():
        files.add_files(storage.location, prefix=settings.STATIC_URL)
    return files
