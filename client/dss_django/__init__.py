"""The Distributed Sync System in Django projects: its cache, sessions in it, locks around views and tasks, and fenced models.

It needs the extra: `pip install 'dss-client[django]'`.
"""
