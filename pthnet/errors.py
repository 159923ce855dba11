"""What a user can put right in a model, a label or a weight file."""


class ModelError(ValueError):
    """Weights, labels or model settings that do not fit; the message names them and the remedy."""
