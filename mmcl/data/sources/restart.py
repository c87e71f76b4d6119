"""How a reader of files says that its batches must be read again."""


class Restart(Exception):  # noqa: N818 - no error
    """What a reader has learnt late about its files changes the batches that it gave; it has taken note."""
