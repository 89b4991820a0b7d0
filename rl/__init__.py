"""Soft actor-critic with curiosity, many agents side by side."""
