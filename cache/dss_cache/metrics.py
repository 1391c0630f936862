"""Metrics of the cache, read from the running service on each scrape: for a hit, counting costs one addition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from dss_cache.service import CacheService

_service: CacheService | None = None


def show(service: CacheService) -> None:
    """Show this service in the metrics; a process has only one."""
    global _service
    _service = service


class CacheCollector(Collector):
    """The metrics of the running cache; zeros if there is none."""

    def collect(self) -> Iterator[Any]:
        service = _service
        gets = CounterMetricFamily("cache_get_total", "Reads on this node, by whether a line answered", labels=["hit"])
        gets.add_metric(["true"], service.hits if service else 0)
        gets.add_metric(["false"], service.misses if service else 0)
        yield gets
        for name, text, value in (
            ("cache_put_total", "Values written through this node", service.puts if service else 0),
            (
                "cache_inval_total",
                "Lines of this node invalidated by writes on other nodes",
                service.near.invalidations if service else 0,
            ),
            ("cache_evict_total", "Lines of this node evicted", service.lines.evictions if service else 0),
            ("cache_write_back_total", "Values this node wrote to the backing store", service.write_back.count if service else 0),
            (
                "cache_memory_lost_total",
                "Values that the backing store had lost when they were read",
                service.reader.lost if service else 0,
            ),
            (
                "cache_memory_newer_total",
                "Lost values of which the backing store had a newer version than the directory",
                service.reader.newer if service else 0,
            ),
            ("cache_near_drop_total", "Drops and flushes sent to near clients", service.near.clients.drops if service else 0),
            (
                "cache_near_client_dropped_total",
                "Near clients that did not confirm an invalidation before their lease ended",
                service.near.clients.dropped_clients if service else 0,
            ),
        ):
            yield CounterMetricFamily(name, text, value)
        for name, text, value in (
            ("cache_items", "Lines of this node", len(service.lines) if service else 0),
            ("cache_keys", "Keys in the directory", len(service.directory.records) if service else 0),
            ("cache_near_clients", "Near clients of this node", service.near.clients.count if service else 0),
            ("cache_near_keys", "Keys that near clients of this node may hold", service.near.clients.keys if service else 0),
            (
                "cache_near_unconfirmed",
                "Invalidations that near clients have not confirmed",
                service.near.clients.confirmations_due if service else 0,
            ),
            ("cache_dirty_items", "Values not yet in the backing store", len(service.directory.dirty) if service else 0),
            (
                "cache_memory_up",
                "0 if the backing store could not be used last time",
                0 if service and service.write_back.trouble else 1,
            ),
        ):
            yield GaugeMetricFamily(name, text, value)


REGISTRY.register(CacheCollector())
