"""What a user can put right about where the work runs."""


class ClusterError(RuntimeError):
    """A cluster, job or schedule that cannot be used as asked; the message names it and the remedy."""
