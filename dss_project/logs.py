"""Structured logs of state changes, not of requests: one line per event, for people or as JSON."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from dss_project.config import NodeConfig


def configure(config: NodeConfig) -> None:
    """Send structlog's events, and the standard library's, to stderr in the format of the settings."""

    def name_the_node(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["node"] = config.node_id
        return event

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_the_node,
    ]
    if config.traces:
        from dss_project.tracing import add_trace

        shared.append(add_trace)
    if config.log_format == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(config.log_level.upper())
    # They log every request, or what the node logs already.
    for noisy in ("daphne", "uvicorn", "asyncio", "django.server"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("django.request").setLevel(logging.ERROR)
    logging.captureWarnings(True)
