from django.apps import AppConfig


class DssProjectConfig(AppConfig):
    name = "dss_project"
    verbose_name = "Distributed Sync System"
