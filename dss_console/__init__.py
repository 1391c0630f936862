"""Pages for people: the browsable API, the landing page and the API docs."""
