"""The node itself: settings, configuration, entry points, commands."""
