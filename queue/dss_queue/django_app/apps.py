"""The Django app of the queue."""

from __future__ import annotations

from django.apps import AppConfig


class DssQueueConfig(AppConfig):
    name = "dss_queue.django_app"
    label = "dss_queue"
    verbose_name = "Queue"
