"""What can stop ``sluice up``: one family, whose message is all that a person gets to see."""


class UpError(Exception):
    """``sluice up`` cannot start or go on; the message says why and what to do."""
