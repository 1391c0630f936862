from django.apps import AppConfig


class DssRaftConfig(AppConfig):
    name = "dss_raft.django_app"
    label = "dss_raft"
    verbose_name = "Raft"

    def ready(self) -> None:
        from django.contrib.auth.signals import user_logged_in

        from dss_raft.django_app.sessions import note_login

        user_logged_in.connect(note_login)
