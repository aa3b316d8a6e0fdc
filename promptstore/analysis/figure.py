"""A reading as a figure."""

from typing import Any

from promptstore.analysis.reading import PromptReading


def draw_reading(reading: PromptReading) -> Any:
    """A matplotlib figure: each virtual token's nearest token against the control, and how alike virtual tokens are.

    The caller owns the figure; it belongs to no global state.
    """
    from matplotlib.figure import Figure

    count = len(reading.virtual_tokens)
    figure = Figure(figsize=(11, max(3.0, 0.24 * count + 1.2)), layout="constrained")
    bars, grid = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_bars(bars, reading)
    image = grid.imshow(reading.alike, vmin=-1, vmax=1, cmap="RdBu_r")
    grid.set(title="cosine between virtual tokens", xlabel="virtual token", ylabel="virtual token")
    figure.colorbar(image, ax=grid, shrink=0.8)
    return figure


def _draw_bars(axes: Any, reading: PromptReading) -> None:
    places = [each.index for each in reading.virtual_tokens]
    nearest = [each.neighbours[0] for each in reading.virtual_tokens]
    axes.barh(places, [each.cosine for each in nearest], color="#4c72b0", label="nearest token")
    axes.plot([each.tightness for each in reading.virtual_tokens], places, "o", color="#dd8452", label="tightness")
    control = reading.control
    for mean, deviation, colour in (
        (control.nearest_cosine_mean, control.nearest_cosine_deviation, "#4c72b0"),
        (control.tightness_mean, control.tightness_deviation, "#dd8452"),
    ):
        axes.axvspan(mean - deviation, mean + deviation, color=colour, alpha=0.15)
        axes.axvline(mean, color=colour, linestyle="--", linewidth=1)
    axes.set_yticks(places, [_printable(each.token) for each in nearest])
    axes.invert_yaxis()
    axes.set(
        title="nearest token by cosine (dashed: random vectors)", xlabel="cosine", xlim=(min(0.0, *axes.get_xlim()), 1)
    )
    axes.legend(loc="lower right", fontsize="small")


def _printable(token: str) -> str:
    """Token texts as labels: no line ends, and no `$`, which matplotlib would read as mathematics."""
    return repr(token)[1:-1].replace("$", r"\$")
