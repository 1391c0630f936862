from django.apps import AppConfig


class DssProjectConfig(AppConfig):
    name = "dss_project"
    verbose_name = "Distributed Sync System"

    def ready(self) -> None:
        # Registers the checks.
        from dss_project import deploy_checks  # noqa: F401
