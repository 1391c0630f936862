from django.apps import AppConfig


class DssRaftConfig(AppConfig):
    name = "dss_raft.django_app"
    label = "dss_raft"
    verbose_name = "Raft"
