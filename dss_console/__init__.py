"""Pages for people: the live cluster page, the browsable API and the API docs."""
