"""``sluice up``: gateway and workers as supervised local processes. Read ``control.py`` first."""
