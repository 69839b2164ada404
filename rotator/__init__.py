"""Keeps provisioning keys young. Read `engine.py`, then `core/machine.py`, then `ports.py`."""

__version__ = "0.1.0"
