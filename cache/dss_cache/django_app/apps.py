"""Django's app configuration of the cache."""

from __future__ import annotations

from django.apps import AppConfig


class DssCacheConfig(AppConfig):
    name = "dss_cache.django_app"
    label = "dss_cache"
    verbose_name = "Cache"
