"""The figures of a training: learning curves, confusion, recall, reliability, and a map of the test clips."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pthnet.metrics import reliability, scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinguishable with every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MAP_CLIPS = 2000


def _figure(width: float, height: float) -> "Figure":
    # Without pyplot: no global state, usable from any thread and without a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """Training loss and UAR on held-out clips per epoch, one line a training ("fold 1 forward")."""
    figure = _figure(9, 3.6)
    loss, recall = figure.subplots(1, 2)
    for index, (name, history) in enumerate(histories.items()):
        colour, style = COLOURS[index // 2 % len(COLOURS)], "--" if "reverse" in name else "-"
        epochs = [record["epoch"] for record in history]
        loss.plot(epochs, [record["loss"] for record in history], style, color=colour, label=name)
        for part, marker in (("validation", "."), ("test", "")):
            if history and f"{part}_uar" in history[0]:
                values = [100 * record[f"{part}_uar"] for record in history]
                recall.plot(epochs, values, style, marker=marker, color=colour, label=f"{name}, {part}")
    loss.set(xlabel="epoch", ylabel="training loss")
    recall.set(xlabel="epoch", ylabel="UAR (%)")
    if any("reverse" in name for name in histories):
        figure.suptitle("solid: forward, dashed: reverse, a colour a fold", fontsize=8)
    for axes in (loss, recall):
        axes.grid(alpha=0.3)
        if len(histories) <= 4:
            axes.legend(fontsize=7)
    return figure


def confusion_matrix(target: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> "Figure":
    """Row-normalised confusion matrix in per cent; counts in small print up to 12 classes."""
    counts = scores(target, predicted, len(classes)).confusion
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.0, 0.62 * len(classes) + 1.8)
    figure = _figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if len(classes) <= 12:
        for row, column in np.ndindex(*share.shape):
            text = f"{share[row, column]:.0f}\n({counts[row, column]})"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share[row, column] > 55 else "black",
            )
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    return figure


def class_recalls(systems: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: Sequence[str]) -> "Figure":
    """Recall of every class, one bar a system; `systems` maps a name to (target, predicted)."""
    figure = _figure(max(6.0, 0.8 * len(classes) + 2), 3.4)
    axes = figure.subplots()
    width = 0.8 / max(len(systems), 1)
    for index, (name, (target, predicted)) in enumerate(systems.items()):
        recalls = np.nan_to_num(100 * scores(target, predicted, len(classes)).recalls)
        axes.bar(
            np.arange(len(classes)) + (index - (len(systems) - 1) / 2) * width,
            recalls,
            width,
            label=name,
            color=COLOURS[index],
        )
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right", fontsize=8)
    axes.set(ylabel="recall (%)", ylim=(0, 100))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(systems))
    return figure


def reliability_diagram(target: np.ndarray, logits: np.ndarray) -> "Figure":
    """Accuracy against confidence, with the number of clips in every bin."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    found = reliability(target, shifted / shifted.sum(1, keepdims=True))
    figure = _figure(4.2, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, len(found.count) + 1)
    filled = found.count > 0
    upper.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    upper.plot(found.confidence[filled], found.accuracy[filled], "o-", color=COLOURS[0])
    upper.set(ylabel="accuracy", ylim=(0, 1), title=f"expected calibration error {found.ece:.3f}")
    lower.bar(edges[:-1], found.count, np.diff(edges), align="edge", color=COLOURS[5])
    lower.set(xlabel="confidence of the prediction", ylabel="clips", xlim=(0, 1))
    return figure


def embedding_map(features: np.ndarray, labels: np.ndarray, classes: Sequence[str], seed: int = 0) -> "Figure":
    """t-SNE of pooled features [n, dim], coloured by true class; of more than `MAP_CLIPS` clips a seeded draw."""
    from sklearn.manifold import TSNE

    if len(features) > MAP_CLIPS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(features), MAP_CLIPS, replace=False))
        features, labels = features[chosen], labels[chosen]
    perplexity = min(30.0, max(2.0, (len(features) - 1) / 4))
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    figure = _figure(6, 4.6)
    axes = figure.subplots()
    markers = "osv^D*PX"
    for index, name in enumerate(classes):
        rows = labels == index
        if rows.any():
            colour, marker = COLOURS[index % len(COLOURS)], markers[index // len(COLOURS) % len(markers)]
            axes.scatter(points[rows, 0], points[rows, 1], s=12, alpha=0.8, color=colour, marker=marker, label=name)
    axes.set(xticks=[], yticks=[], title=f"t-SNE of pooled features, {len(points)} test clips")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
