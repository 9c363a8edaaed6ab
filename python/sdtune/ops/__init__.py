"""Fast operations for frozen networks."""
