"""Figures: drawn without a display, for any number of classes."""

import io

import numpy as np
import pytest

from tasks import figures


@pytest.mark.parametrize("classes", [3, 43])
def test_every_figure_is_drawn(classes: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"class {index}" for index in range(classes)]
    target = rng.integers(0, classes, 60)
    logits = rng.normal(size=(60, classes))
    history = [{"epoch": epoch, "loss": 1 / epoch, "test_uar": 0.1 * epoch} for epoch in range(1, 4)]
    drawn = [
        figures.learning_curves({"fold 1 forward": history, "fold 1 reverse": history}),
        figures.confusion_matrix(target, logits.argmax(1), names),
        figures.class_recalls({"fused": (target, logits.argmax(1))}, names),
        figures.reliability_diagram(target, logits),
        figures.embedding_map(rng.normal(size=(60, 8)), target, names),
    ]
    for figure in drawn:
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        assert picture.tell() > 5000
