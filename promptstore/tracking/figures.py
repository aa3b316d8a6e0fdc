"""Figures of a run, as PNG bytes. No window, no global state of matplotlib's."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

LABELS_WITH_COUNTS = 12


def confusion_matrix(labels: Sequence[str], counts: Sequence[Sequence[int]], title: str) -> bytes:
    """What was said (columns) for what is true (rows). counts: [true][said], in the order of `labels`."""
    size = min(12.0, 3.0 + 0.6 * len(labels))
    figure, axes = _figure(size, size)
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true label", shrink=0.8)
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, labels)
    if len(labels) <= LABELS_WITH_COUNTS:
        for row in places:
            for column in places:
                colour = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(counts[row][column]), ha="center", va="center", color=colour)
    axes.set(xlabel="said", ylabel="true", title=title)
    return _png(figure)


def curves(lines: Mapping[str, Sequence[tuple[int, float]]], title: str, ylabel: str) -> bytes:
    """Measurements over steps, one line for each name."""
    figure, axes = _figure(7.0, 4.0)
    for name, points in lines.items():
        steps, values = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, values, label=name, marker="o" if len(points) < 30 else None, markersize=3)
    axes.set(xlabel="step", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    if lines:
        axes.legend()
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
