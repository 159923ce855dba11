"""One colour a class, the same in every picture, video and page."""

from tasks.figures import COLOURS


def colour_of(index: int) -> tuple[int, int, int]:
    """RGB in 0..255 of a class, by its place in the order of labels."""
    text = hex_of(index)
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def hex_of(index: int) -> str:
    """The same as "#rrggbb"."""
    # Black is lost on dark video and on the page's night side; its place is taken by a grey.
    chosen = COLOURS[index % len(COLOURS)]
    return "#8a8f98" if chosen == "#000000" else chosen
