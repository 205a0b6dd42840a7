"""The report's pictures: what they show, and how they look."""
