"""What a user can put right in a source, a list or a table."""


class StorageError(ValueError):
    """A source, list or table that cannot be used as asked; the message names it and the remedy."""


class FencedOut(StorageError):
    """Another run of the same extraction committed first; nothing was lost, run the command again."""


class Unreadable(StorageError):
    """One clip cannot be read now.

    Attributes
    ----------
    kind : str
        "missing", "changed" (its bytes are no longer those that were planned) or "access_denied".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["Unreadable"], tuple[str, str]]:
        # ValueError pickles its own args only, and this error crosses process borders.
        return type(self), (self.kind, str(self))
