"""The sheet by which masks are judged: pictures with their masks, a row per actor that says where it was found, what
was taken of the clip, and the commands that mend what is wrong. Written as one PNG."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .framing import Box
from .sheets import INK, INKS, LINE, PAPER, TEXT, outline

WIDE, COLUMNS, GAP = 1264, 4, 8              # pixels of the sheet, pictures beside one another, pixels between them
TILE = (WIDE - GAP) // COLUMNS - GAP         # pixels: the width of a picture on the sheet
SHOWN = 8                                    # pictures of a clip that are shown
FAINT, WARN, RULE = (105, 105, 105), (196, 30, 30), (255, 255, 255)
LABEL = 150                                  # pixels kept for an actor's name


@dataclass(frozen=True)
class Row:
    """One actor. masks: bool (H, W), one for each picture; confidence: 0..1, one for each. boxes: (picture, box,
    number, taken) of the things that answered to it. notes: sentences."""

    name: str
    masks: Sequence[np.ndarray]
    confidence: Sequence[float]
    boxes: Sequence[tuple[int, Box, int, bool]] = ()
    notes: Sequence[str] = ()

    @property
    def missing(self) -> list[int]:
        """The numbers of the pictures in which it was not found."""
        return [k for k, mask in enumerate(self.masks) if not mask.any()]


@dataclass(frozen=True)
class Sheet:
    """pictures: uint8 (H, W, 3), of any sizes; labels: one for each. whole, part: the first picture before it was
    fitted, and what of it was kept; about: what was taken, in sentences; mend: (what is wrong, what to type)."""

    title: str
    pictures: Sequence[np.ndarray]
    labels: Sequence[str]
    rows: Sequence[Row]
    about: Sequence[str] = ()
    mend: Sequence[tuple[str, str]] = ()
    whole: np.ndarray | None = None
    part: Box | None = None
    everything: bool = field(default=False)                # show every picture, not SHOWN of them

    def save(self, path: Path) -> Path:
        """Draw it."""
        shown = range(len(self.pictures)) if self.everything else self._chosen()
        blocks = [self._head(), self._actors(), *self._grid(list(shown)), self._foot()]
        blocks = [block for block in blocks if block is not None]
        sheet, y = Image.new("RGB", (WIDE, sum(b.height for b in blocks) + GAP), PAPER), 0
        for block in blocks:
            sheet.paste(block, (0, y))
            y += block.height
        sheet.save(path)
        return path

    def _chosen(self) -> list[int]:
        """SHOWN of the pictures, evenly spaced; those in which a thing is seen best, and the first in which it is not,
        take the place of a neighbour."""
        even = np.linspace(0, len(self.pictures) - 1, min(SHOWN, len(self.pictures))).round().astype(int).tolist()
        telling = {box[0] for row in self.rows for box in row.boxes if box[3]} | {
            row.missing[0] for row in self.rows if 0 < len(row.missing) < len(row.masks)}
        for best in sorted(telling - set(even)):
            inner = range(1, len(even) - 1) or range(len(even))
            even[min(inner, key=lambda n: abs(even[n] - best))] = best
        return sorted(set(even))

    def _head(self) -> Image.Image:
        lines = [part for text in self.about for part in wrapped(text, WIDE - 2 * GAP - (TILE if self._cut() else 0))]
        tall = GAP + (len(lines) + 1) * LINE + 8
        small = self._kept_part() if self._cut() else None
        block = Image.new("RGB", (WIDE, max(tall, small.height + 2 * GAP if small else 0)), PAPER)
        draw = ImageDraw.Draw(block)
        draw.text((GAP, GAP), self.title, INK, font(TEXT + 3))
        for n, line in enumerate(lines):
            draw.text((GAP, GAP + LINE + 4 + n * LINE), line, FAINT, font())
        if small:
            block.paste(small, (WIDE - small.width - GAP, GAP))
        return block

    def _cut(self) -> bool:
        """Whether fitting changed what is seen."""
        if self.whole is None or self.part is None:
            return False
        height, width = self.whole.shape[:2]
        return max(abs(a - b) for a, b in zip(self.part, (0, 0, width, height))) >= 1

    def _kept_part(self) -> Image.Image:
        """The whole picture, small; what was cut off is dark, what was added is striped."""
        height, width = self.whole.shape[:2]
        left, top, right, bottom = self.part
        reach = [max(0, -left), max(0, -top), max(0, right - width), max(0, bottom - height)]
        scale = min((TILE - GAP) / (width + reach[0] + reach[2]), 110 / (height + reach[1] + reach[3]))
        sides = [round(scale * long) for long in (width + reach[0] + reach[2], height + reach[1] + reach[3])]
        small = Image.new("RGB", sides, (205, 205, 205))
        picture = Image.fromarray(self.whole).resize((max(1, round(width * scale)), max(1, round(height * scale))))
        small.paste(picture.point(lambda value: value // 3), (round(reach[0] * scale), round(reach[1] * scale)))
        box = [round(scale * at) for at in (left + reach[0], top + reach[1], right + reach[0], bottom + reach[1])]
        kept = [max(0, left), max(0, top), min(width, right), min(height, bottom)]
        inner = picture.crop([round(scale * at) for at in kept])
        small.paste(inner, (round(scale * (kept[0] + reach[0])), round(scale * (kept[1] + reach[1]))))
        ImageDraw.Draw(small).rectangle([box[0], box[1], box[2] - 1, box[3] - 1], outline=INKS[1], width=2)
        return small

    def _actors(self) -> Image.Image | None:
        if not self.rows:
            return None
        notes = [[line for note in row.notes for line in wrapped(note, WIDE - LABEL - 2 * GAP)] for row in self.rows]
        block = Image.new("RGB", (WIDE, sum(2 * LINE + 6 + LINE * len(lines) for lines in notes) + GAP), PAPER)
        draw, y = ImageDraw.Draw(block), GAP
        for ink, row, lines in zip(_inks(self.rows), self.rows, notes):
            draw.rectangle([GAP, y + 3, GAP + TEXT, y + 3 + TEXT], fill=ink, outline=INK)
            draw.text((GAP + TEXT + 6, y + 2), shortened(row.name, LABEL - TEXT - GAP), INK, font())
            missing = row.missing
            draw.text((LABEL, y + 2), self.found(row), WARN if missing else INK, font())
            self._strip(draw, row, ink, y + LINE)
            y += 2 * LINE + 6
            for line in lines:
                draw.text((LABEL, y - 4), line, FAINT, font())
                y += LINE
        return block

    @staticmethod
    def found(row: Row) -> str:
        """Where an actor was found, how surely, and how large it is, in words."""
        count, missing = len(row.masks), row.missing
        if len(missing) == count:
            return f"not found in any of {count}"
        sure = np.mean([c for c, mask in zip(row.confidence, row.masks) if mask.any()])
        share = np.mean([mask.mean() for mask in row.masks if mask.any()])
        text = f"in {count - len(missing)} of {count}, confidence {sure:.2f}, {share:.1%} of the picture"
        return text + (f"; not in {spans(missing)}" if missing else "")

    def _strip(self, draw: ImageDraw.ImageDraw, row: Row, ink: tuple[int, int, int], y: int) -> None:
        """A cell per picture, the fuller in colour the surer; crossed out where it was not found."""
        count = len(row.masks)
        cell = (WIDE - LABEL - GAP) / count
        for k, (mask, sure) in enumerate(zip(row.masks, row.confidence)):
            box = [LABEL + k * cell, y + 2, LABEL + (k + 1) * cell - (2 if cell > 6 else 0), y + LINE - 2]
            if mask.any():
                fill = tuple(round(255 + (part - 255) * (0.25 + 0.75 * float(sure))) for part in ink)
                draw.rectangle(box, fill=fill, outline=INK if cell > 6 else None)
            else:
                draw.rectangle(box, fill=PAPER, outline=WARN)
                draw.line([box[0], box[3], box[2], box[1]], WARN)
            if cell >= 18:
                draw.text((box[0] + 3, y + 3), str(k), INK, font(11))

    def _grid(self, shown: list[int]) -> list[Image.Image]:
        tiles = [self._tile(k) for k in shown]
        rows = [tiles[n:n + COLUMNS] for n in range(0, len(tiles), COLUMNS)]
        out = []
        for row in rows:
            block = Image.new("RGB", (WIDE, max(tile.height for tile in row) + GAP), PAPER)
            for n, tile in enumerate(row):
                block.paste(tile, (GAP + n * (TILE + GAP), 0))
            out.append(block)
        return out

    def _tile(self, k: int) -> Image.Image:
        """One picture at the width of a column, with outlines, names, boxes and rulers in its own pixels."""
        height, width = self.pictures[k].shape[:2]
        scale = min(TILE / width, 1.5 * TILE / height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
        picture = np.asarray(Image.fromarray(self.pictures[k]).resize(size, how)).astype(np.float32)
        inks = _inks(self.rows)
        for ink, row in zip(inks, self.rows):
            mask = np.asarray(Image.fromarray(row.masks[k]).resize(size, Image.Resampling.NEAREST))
            picture[mask] = 0.72 * picture[mask] + 0.28 * np.float32(ink)
            picture[outline(mask[None])[0]] = ink
        tile = Image.new("RGB", (TILE, LINE + size[1]), PAPER)
        tile.paste(Image.fromarray(picture.astype(np.uint8)), (0, LINE))
        draw = ImageDraw.Draw(tile)
        draw.text((0, 2), self.labels[k], INK, font())
        _rulers(draw, (width, height), scale, LINE)
        for ink, row in zip(inks, self.rows):
            self._names(draw, row, k, ink, scale)
        return tile

    def _names(self, draw: ImageDraw.ImageDraw, row: Row, k: int, ink: tuple[int, int, int], scale: float) -> None:
        for at, box, number, taken in row.boxes:
            if at == k:
                left, top, right, bottom = (scale * value for value in box)
                draw.rectangle([left, top + LINE, right, bottom + LINE], outline=ink if taken else RULE, width=1)
                tag(draw, f"{row.name} {number}" if not taken else f"{row.name}: found here", left, bottom + LINE, ink)
        if row.masks[k].any():
            ys, xs = np.nonzero(row.masks[k])
            tag(draw, f"{row.name} {row.confidence[k]:.2f}", scale * xs.min(), scale * ys.min() + LINE - 14, ink)

    def _foot(self) -> Image.Image | None:
        lines = [(kind, part) for wrong, remedy in self.mend
                 for kind, text in ((WARN, wrong), (INK, f"    {remedy}")) for part in wrapped(text, WIDE - 2 * GAP)]
        if not lines:
            return None
        block = Image.new("RGB", (WIDE, len(lines) * LINE + GAP), PAPER)
        draw = ImageDraw.Draw(block)
        for n, (kind, text) in enumerate(lines):
            draw.text((GAP, n * LINE), text, kind, font())
        return block


def tag(draw: ImageDraw.ImageDraw, text: str, x: float, y: float, ink: tuple[int, int, int]) -> None:
    """A word on a dark ground, kept inside the tile."""
    wide = font(11).getlength(text) + 4
    x, y = min(max(0, x), TILE - wide), max(LINE + 14, y)                     # below the upper ruler
    draw.rectangle([x, y, x + wide, y + 13], fill=(16, 16, 16))
    draw.text((x + 2, y), text, ink, font(11))


def _rulers(draw: ImageDraw.ImageDraw, size: tuple[int, int], scale: float, top: int) -> None:
    """Ticks in the picture's own pixels along its upper and left edge: where to read --box and --point."""
    step = next(s for s in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 10**9) if s * scale >= 44)
    for axis, long in enumerate(size):
        for at in range(0, long, step):
            place = at * scale
            ends = [place, top, place, top + 5] if axis == 0 else [0, top + place, 5, top + place]
            draw.line(ends, RULE, 2)
            if at:
                where = (place + 2, top) if axis == 0 else (7, top + place - 6)
                draw.text(where, str(at), RULE, font(10), stroke_width=1, stroke_fill=(0, 0, 0))


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines that fit a width in pixels."""
    lines, line = [], text[:len(text) - len(text.lstrip())]
    for word in text.split():
        longer = f"{line}{word}" if not line.strip() else f"{line} {word}"
        if font().getlength(longer) > width and line.strip():
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line]


def shortened(text: str, width: int) -> str:
    """A text that fits a width in pixels, its end given up for dots."""
    while text and font().getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…" if len(text) > 1 else ""
    return text


def spans(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    out: list[list[int]] = []
    for number in numbers:
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


def font(size: int = TEXT) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _inks(rows: Sequence[Row]) -> list[tuple[int, int, int]]:
    return [INKS[n % len(INKS)] for n in range(len(rows))]
