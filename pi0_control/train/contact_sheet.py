"""A contact sheet: one picture of a few moments of some episodes, through every camera."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pi0_control.train.inspection import Glimpse

HEIGHT = 140  # of every image [px]
GAP, MARGIN = 4, 24
PAPER, INK, FAINT, NOTHING = (250, 250, 248), (30, 34, 40), (120, 126, 134), (225, 225, 222)
_TITLE, _TEXT, _SMALL = (ImageFont.load_default(size) for size in (22, 17, 13))


def contact_sheet(glimpses: Sequence[Glimpse], fps: float, title: str) -> NDArray[np.uint8]:
    """Draw episodes one below the other, a row per camera and a column per moment; RGB uint8 [H, W, 3]."""
    bands = [_band(look, fps) for look in glimpses]
    width = max(band.width for band in bands) + 2 * MARGIN
    sheet = Image.new("RGB", (width, sum(band.height for band in bands) + 3 * MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), _fitted(title, _TITLE, width - 2 * MARGIN), INK, _TITLE, anchor="lm")
    top = 2 * MARGIN
    for band in bands:
        draw.line((MARGIN, top, width - MARGIN, top), NOTHING)
        sheet.paste(band, (MARGIN, top + 1))
        top += band.height
    return np.asarray(sheet)


def _band(look: Glimpse, fps: float) -> Image.Image:
    """One episode: instruction and times, then a row per camera."""
    rows = {camera: [_scaled(image) for image in images] for camera, images in look.images.items()}
    widest = max((image.width for row in rows.values() for image in row), default=HEIGHT)
    left = max((int(_SMALL.getlength(camera)) for camera in rows), default=0) + 2 * GAP
    header, captions = 34, 20
    size = (left + len(look.steps) * (widest + GAP), header + captions + len(rows) * (HEIGHT + GAP) + MARGIN // 2)
    band = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(band)
    length = f"{look.episode.length} frames   {look.episode.length / fps:.2f} s"
    draw.text((band.width - GAP, header // 2), length, FAINT, _SMALL, anchor="rm")
    number = f"episode {look.episode.index}"
    draw.text((0, header // 2), number, FAINT, _TEXT, anchor="lm")
    indent = max(left, int(_TEXT.getlength(number)) + 3 * GAP)
    room = band.width - indent - int(_SMALL.getlength(length)) - 4 * GAP
    draw.text((indent, header // 2), _fitted(look.prompt, _TEXT, room), INK, _TEXT, anchor="lm")
    for column, step in enumerate(look.steps):
        draw.text((left + column * (widest + GAP), header + 6), f"{step / fps:.2f} s", FAINT, _SMALL, anchor="lm")
    for row, (camera, images) in enumerate(rows.items()):
        top = header + captions + row * (HEIGHT + GAP)
        draw.text((0, top + HEIGHT // 2), camera, FAINT, _SMALL, anchor="lm")
        for column in range(len(look.steps)):
            place = (left + column * (widest + GAP), top)
            if images:
                band.paste(images[column], place)
            else:
                draw.rectangle((*place, place[0] + widest - 1, top + HEIGHT - 1), NOTHING)
    return band


def _scaled(image: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(image)
    return picture.resize((max(1, round(picture.width * HEIGHT / picture.height)), HEIGHT), Image.Resampling.LANCZOS)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, its end left out where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
