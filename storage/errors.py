"""What a user can put right in a source, a list or a table."""


class StorageError(ValueError):
    """A source, list or table that cannot be used as asked; the message names it and the remedy."""


class FencedOut(StorageError):
    """Another run of the same extraction committed first; nothing was lost, run the command again."""
