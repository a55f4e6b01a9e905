"""Figure 1 of the paper: score against prompt tokens, a curve for each row with passages, a point for each other row. A PNG by Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from worker.evaluation.summary import Summary, main_measure

WIDTH, HEIGHT = 1500, 900
LEFT, RIGHT, TOP, BOTTOM = 110, 420, 50, 100
TEXT = 24
DOT = 8
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf", "#7f7f7f", "#bcbd22")
Shape = Literal["circle", "square", "diamond"]
SHAPES: tuple[Shape, ...] = ("circle", "square", "diamond")
"""Of the first ten rows, of the next ten, of the rest: two rows look alike from the thirty-first on."""
INK, GRID = "#222222", "#dddddd"
LABELS = {"rouge_l": "Rouge-L", "accuracy": "accuracy (%)"}

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """`points` are (prompt tokens, score), from the fewest tokens on."""

    name: str
    points: tuple[Point, ...]


def curves_of(summaries: Sequence[Summary], measure: str) -> list[Curve]:
    """One for each row, in the table's order."""
    found: dict[str, list[Point]] = {}
    for summary in summaries:
        found.setdefault(summary.line.row.name, []).append((summary.prompt_tokens, summary.measures[measure].mean))
    return [Curve(name=name, points=tuple(sorted(points))) for name, points in found.items()]


def draw_figure(path: Path, summaries: Sequence[Summary]) -> None:
    measure = main_measure(list(summaries[0].measures))
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    canvas = _Canvas(ImageDraw.Draw(image), curves_of(summaries, measure))
    canvas.draw_axes(LABELS[measure])
    canvas.draw_curves()
    image.save(path, format="PNG")


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers that span [low, high]: 1, 2 or 5 times a power of ten apart, at most `most` steps."""
    rough = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def powers_of_two(low: float, high: float) -> list[float]:
    """Those that span [low, high], for an axis on which doubling is a step."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    return [2.0**exponent for exponent in range(first, max(last, first + 1) + 1)]


class _Canvas:
    def __init__(self, draw: ImageDraw.ImageDraw, curves: Sequence[Curve]) -> None:
        points = [point for curve in curves for point in curve.points]
        tokens, scores = [max(point[0], 1.0) for point in points], [point[1] for point in points]
        self._draw = draw
        self._curves = curves
        self._x_ticks = powers_of_two(min(tokens), max(tokens))
        self._y_ticks = ticks(min(scores), max(scores))
        self._font = ImageFont.load_default(TEXT)

    def draw_axes(self, label: str) -> None:
        left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
        for score in self._y_ticks:
            y = self._y(score)
            self._draw.line([(left, y), (right, y)], fill=GRID, width=2)
            self._text(left - 14, y, f"{score:g}", "rm")
        for tokens in self._x_ticks:
            x = self._x(tokens)
            self._draw.line([(x, TOP), (x, bottom)], fill=GRID, width=2)
            self._text(x, bottom + 12, f"{tokens:g}", "mt")
        self._draw.line([(left, TOP), (left, bottom), (right, bottom)], fill=INK, width=3)
        self._text((left + right) / 2, HEIGHT - 18, "prompt tokens", "mb")
        self._text(left, TOP - 14, label, "lb")

    def draw_curves(self) -> None:
        for number, curve in enumerate(self._curves):
            round_, colour = divmod(number, len(COLOURS))
            mark = partial(self._mark, colour=COLOURS[colour], shape=SHAPES[round_ % len(SHAPES)])
            spots = [(self._x(max(tokens, 1.0)), self._y(score)) for tokens, score in curve.points]
            if len(spots) > 1:
                self._draw.line(spots, fill=COLOURS[colour], width=4, joint="curve")
            for spot in spots:
                mark(spot)
            y = TOP + 20 + number * (TEXT + 12)
            mark((WIDTH - RIGHT + 40, y))
            self._text(WIDTH - RIGHT + 60, y, curve.name, "lm")

    def _mark(self, spot: Point, colour: str, shape: Shape) -> None:
        x, y = spot
        match shape:
            case "circle":
                self._draw.ellipse([x - DOT, y - DOT, x + DOT, y + DOT], fill=colour)
            case "square":
                self._draw.rectangle([x - DOT, y - DOT, x + DOT, y + DOT], fill=colour)
            case "diamond":
                self._draw.polygon([(x, y - DOT - 3), (x + DOT + 3, y), (x, y + DOT + 3), (x - DOT - 3, y)], fill=colour)

    def _text(self, x: float, y: float, text: str, anchor: str) -> None:
        self._draw.text((x, y), text, fill=INK, font=self._font, anchor=anchor)

    def _x(self, tokens: float) -> float:
        """On a logarithmic scale."""
        low, high = math.log2(self._x_ticks[0]), math.log2(self._x_ticks[-1])
        return LEFT + (math.log2(tokens) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def _y(self, score: float) -> float:
        low, high = self._y_ticks[0], self._y_ticks[-1]
        return HEIGHT - BOTTOM - (score - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
