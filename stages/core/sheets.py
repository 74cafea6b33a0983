"""Pictures for people: contact sheets of clips, and clips with their masks drawn in."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .video import enlarge

INKS = ((255, 64, 160), (0, 224, 255), (255, 232, 0), (120, 255, 80), (255, 140, 0), (190, 120, 255))
PAPER, INK, TEXT, GAP = (250, 250, 250), (24, 24, 24), 14, 4       # colours of the sheet; pixels
LINE = TEXT + 6
LEAST = 96                                                          # pixels, of a frame on a sheet


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], path: Path | str, scale: int | None = None) -> Path:
    """Labelled rows of frames [(label, uint8 (F, H, W, 3))], each frame enlarged `scale` times (None: so that its short
    side has at least LEAST pixels), written as one PNG. Rows may differ in length and size."""
    pictures = [(label, enlarge(np.asarray(frames), scale or -(-LEAST // min(np.shape(frames)[1:3]))))
                for label, frames in rows]
    wide = max((sum(f.shape[1] + GAP for f in frames) for _, frames in pictures), default=0)
    font = ImageFont.load_default(TEXT)
    wide = max([wide, *(int(font.getlength(label)) + GAP for label, _ in pictures)]) + GAP
    tall = sum(LINE + frames.shape[1] + GAP for _, frames in pictures) + GAP
    sheet = Image.new("RGB", (wide, tall), PAPER)
    draw, y = ImageDraw.Draw(sheet), GAP
    for label, frames in pictures:
        draw.text((GAP, y), label, INK, font)
        for n, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame), (GAP + n * (frame.shape[1] + GAP), y + LINE))
        y += LINE + frames.shape[1] + GAP
    sheet.save(path)
    return Path(path)


def overlay(frames_FHWC: np.ndarray, masks: Mapping[str, np.ndarray], short_side: int = 128) -> np.ndarray:
    """`tinted` frames with a legend beneath -> uint8 (F, H', W', 3)."""
    out = tinted(frames_FHWC, masks, short_side)
    legend = _legend(list(masks), out.shape[2])
    return np.concatenate([out, np.broadcast_to(legend, (len(out), *legend.shape))], 1)


def tinted(frames_FHWC: np.ndarray, masks: Mapping[str, np.ndarray], short_side: int = 128) -> np.ndarray:
    """Frames with each mask {name: bool (F, H, W)} outlined in its own ink over a faint tint. Small frames are enlarged
    by a whole number to at least `short_side` pixels -> uint8 (F, H', W', 3)."""
    times = max(1, -(-short_side // min(frames_FHWC.shape[1:3])))
    out = enlarge(frames_FHWC, times).astype(np.float32)
    for ink, mask in zip(_inks(len(masks)), masks.values()):
        large = enlarge(np.asarray(mask, bool), times)
        out[large] = 0.8 * out[large] + 0.2 * np.float32(ink)
        out[outline(large)] = ink
    return out.astype(np.uint8)


def _inks(count: int) -> list[tuple[int, int, int]]:
    return [INKS[n % len(INKS)] for n in range(count)]


def outline(masks_FHW: np.ndarray) -> np.ndarray:
    """bool (F, H, W): pixels of the mask with a neighbour (of four) outside it, two pixels thick."""
    inner = masks_FHW
    for _ in range(2):
        padded = np.pad(inner, ((0, 0), (1, 1), (1, 1)))
        inner = (inner & padded[:, 2:, 1:-1] & padded[:, :-2, 1:-1] & padded[:, 1:-1, 2:] & padded[:, 1:-1, :-2])
    return masks_FHW & ~inner


def _legend(names: Sequence[str], width: int) -> np.ndarray:
    """Names in their inks on a dark strip, wrapped to the width -> uint8 (lines * LINE, width, 3)."""
    font, lines, x = ImageFont.load_default(TEXT), [[]], GAP
    for name, ink in zip(names, _inks(len(names))):
        length = int(font.getlength(name)) + 2 * GAP
        if x + length > width and lines[-1]:
            lines.append([])
            x = GAP
        lines[-1].append((x, name, ink))
        x += length
    strip = Image.new("RGB", (width, LINE * len(lines)), INK)
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        for x, name, ink in line:
            draw.text((x, row * LINE + 2), name, ink, font)
    return np.asarray(strip)
