"""The ``sluice`` command: the platform without a cluster, and the checks that need none."""
