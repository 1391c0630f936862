"""The node itself: settings, configuration, the doors, the commands."""
