"""Soft actor-critic with curiosity, many agents in lockstep."""
