"""CSS and scripts of the admin, the browsable API and the API docs, served from the installed packages without collectstatic."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.staticfiles.finders import AppDirectoriesFinder
from servestatic import ServeStaticASGI
from servestatic import utils as servestatic_utils

#: Files are read in blocks of this size, each in a worker thread. servestatic's own are 8 KiB: eight times as many changes of threads.
BLOCK_BYTES = 64 * 1024


def static_files(otherwise: Any) -> Any:
    """An ASGI application over every app's `static` folder; other requests go to `otherwise`."""
    servestatic_utils.ASGI_BLOCK_SIZE = BLOCK_BYTES
    files = ServeStaticASGI(otherwise, max_age=3600, add_headers_function=_keep_own_files_fresh)
    for storage in AppDirectoriesFinder().storages.values():
        files.add_files(storage.location, prefix=settings.STATIC_URL)
    return files


def _keep_own_files_fresh(headers: Any, path: str, url: str) -> None:
    """The script of a page must be that of the release that has rendered the page. An unchanged file costs a 304."""
    if url.startswith(f"{settings.STATIC_URL}dss/"):
        headers["Cache-Control"] = "no-cache"
