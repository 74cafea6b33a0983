"""Photos, animated pictures and masks, of any program: each by a stated rule (core/video.py) or refused by name."""
from __future__ import annotations

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features
from test_media import (
    BLUE,
    CLEAR,
    ONE,
    PNG,
    RED,
    SCENE,
    bomb,
    film,
    numbers_in,
    pages,
    pillow,
    renamed,
    save,
    scene,
    srgb_code,
    text,
)

from stages.core import pictures, reading, video
from stages.core.errors import BadInput


# -- the table: photos -----------------------------------------------------------------------------------------------
def icc(red=(0.640, 0.330), green=(0.300, 0.600), blue=(0.150, 0.060), gamma: float = 2.2) -> bytes:
    """A minimal matrix profile (ICC v2): primaries adapted to D50 by Bradford's matrix, one gamma."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in (red, green, blue)]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    xyz = columns * np.linalg.solve(columns, white)
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    xyz = np.linalg.solve(cone, np.diag((cone @ d50) / (cone @ white)) @ cone) @ xyz

    def point(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    words = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    parts = {b"desc": words, b"cprt": b"text\0\0\0\0none\0", b"wtpt": point(d50), b"rTRC": curve, b"gTRC": curve,
             b"bTRC": curve, **{tag: point(xyz[:, n]) for n, tag in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}}
    table, body = struct.pack(">I", len(parts)), b""
    for tag, part in parts.items():
        part += bytes(-len(part) % 4)
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(parts) + len(body), len(part))
        body += part
    head = struct.pack(">I4sI4s4s4s12s4s4s", 128 + len(table) + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ",
                       b"XYZ ", bytes(12), b"acsp", bytes(4)) + bytes(24) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


def by_primaries(rgb, primaries: int, gamma: float = 2.2) -> list[int]:
    light = np.array([(v / 255) ** gamma for v in rgb])
    matrix = {12: ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979))}[primaries]
    return [round(255 * srgb_code(min(1, max(0, sum(m * x for m, x in zip(row, light)))))) for row in matrix]


def palette(clear: bool = False) -> Image.Image:
    out = Image.fromarray(scene(1)[0]).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    if clear:
        out.info["transparency"] = out.getpixel((90, 10))
    return out


def deep() -> np.ndarray:
    return (np.repeat(scene(1)[0][..., 1:2], 1, -1)[..., 0].astype(np.uint16) * 257)


P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
GREY = ((0.2, 0.2, (40,) * 3), (0.2, 0.8, (60,) * 3))
CLEAR_ONE = (*SCENE[:3], (0.8, 0.2, (255,) * 3))
PHOTOS = {
    "PNG": (save("a.png", ONE), SCENE, 0),
    "PNG with alpha": (save("a.png", CLEAR[0]), CLEAR_ONE, 0),
    "half transparent": (save("a.png", np.full((64, 96, 4), (0, 0, 0, 128), np.uint8)), ((0.5, 0.5, (127,) * 3),), 0),
    "grey with alpha": (save("a.png", lambda: Image.fromarray(CLEAR[0]).convert("LA")), ((0.8, 0.2, (255,) * 3),
                                                                                         (0.2, 0.8, (60,) * 3)), 0),
    "a palette": (save("a.png", palette), SCENE, 0),
    "a palette with a clear colour": (save("a.png", lambda: palette(True)), (*SCENE[:2], (0.2, 0.8, (255,) * 3)), 0),
    "one bit": (save("a.png", lambda: Image.fromarray(ONE[..., 0] > 100)), ((0.2, 0.2, (255,) * 3),
                                                                            (0.2, 0.8, (0,) * 3)), 0),
    "grey": (save("a.png", ONE[..., 1]), GREY, 0),
    "grey of 16 bits": (save("a.png", deep), GREY, 0),
    "grey of 16 bits, TIFF": (save("a.tif", deep), GREY, 0),
    "float, 0 to 1": (save("a.tiff", (ONE[..., 1] / 255).astype(np.float32)), GREY, 0),
    "float, any range": (save("a.tiff", np.linspace(-3, 5, 96, dtype=np.float32)[None].repeat(64, 0)),
                         ((0, 0, (0,) * 3), (0.5, 0.5, (129,) * 3)), 1),
    "integers of 32 bits": (save("a.tiff", lambda: Image.fromarray((ONE[..., 1].astype(np.int32) - 40) * 100000)),
                            ((0.2, 0.2, (0,) * 3), (0.2, 0.8, (255,) * 3)), 0),
    "TIFF": (save("a.tif", ONE, compression="tiff_lzw"), SCENE, 0),
    "BMP": (save("a.bmp", ONE), SCENE, 0),
    "WebP": (save("a.webp", ONE, lossless=True), SCENE, 0),
    "JPEG": (save("a.jpeg", ONE, quality=95), SCENE, 4),
    "grey JPEG": (save("a.jpg", ONE[..., 1], quality=95), GREY, 2),
    "CMYK JPEG": (save("a.jpg", lambda: Image.fromarray(ONE).convert("CMYK"), quality=95), SCENE, 6),
    "CMYK TIFF": (save("a.tif", lambda: Image.fromarray(ONE).convert("CMYK")), SCENE, 1),
    "L*a*b*": (save("a.tif", lambda: ImageCms.profileToProfile(Image.fromarray(ONE), ImageCms.createProfile(
        "sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")), SCENE, 10),
    "Display P3": (save("a.png", ONE, icc_profile=icc(*P3)), ((0.2, 0.2, by_primaries(RED, 12)),
                                                            (0.8, 0.8, by_primaries(BLUE, 12))), 2),
    "Display P3 with alpha": (save("a.png", CLEAR[0], icc_profile=icc(*P3)), ((0.2, 0.2, by_primaries(RED, 12)),
                                                                            (0.8, 0.2, (255,) * 3)), 2),
    "a broken profile": (save("a.png", ONE, icc_profile=b"no profile" * 20), SCENE, 0),
    "a JPEG named png": (renamed(save("a.jpg", ONE, quality=95), "b.png"), SCENE, 4),
    "one pixel": (save("a.png", np.full((1, 1, 3), RED, np.uint8)), ((0, 0, RED),), 0),
    "a phone's JPEG with a second picture": (lambda d: save("a.mpo", ONE, save_all=True, append_images=[Image.fromarray(
        ONE[::2, ::2])], quality=95)(d).rename(d / "a.jpg"), SCENE, 4),
    "broken EXIF": (save("a.jpg", ONE, quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"), SCENE, 4),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_odd_photos(name, tmp_path):
    make, facts, near = PHOTOS[name]
    path = make(tmp_path)
    picture, = video.read_images([path])
    assert picture.dtype == np.uint8 and picture.shape == ((1, 1, 3) if name == "one pixel" else (64, 96, 3))
    for row, column, rgb in facts:
        seen = picture[int(row * picture.shape[0]), int(column * picture.shape[1])].astype(int)
        assert np.abs(seen - rgb).max() <= near, (row, column, seen, rgb)
    assert np.array_equal(video.read_clip(path), picture[None])              # and as a clip of one frame


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("end", ["jpg", "png", "webp", "tif"])
def test_exif_orientations(orientation, end, tmp_path):
    """The picture is stored so that a viewer, by EXIF 2.3's table, shows `scene`."""
    stored = {1: ONE, 2: ONE[:, ::-1], 3: ONE[::-1, ::-1], 4: ONE[::-1], 5: ONE.swapaxes(0, 1),
              6: np.rot90(ONE, 1), 7: np.rot90(ONE, 2).swapaxes(0, 1), 8: np.rot90(ONE, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"exif": exif} if end in ("png", "tif") else {"exif": exif, "quality": 95}
    path = save(f"a.{end}", np.ascontiguousarray(stored), **how)(tmp_path)
    assert (video.read_masks(tmp_path)[0] == (ONE @ np.array([0.299, 0.587, 0.114]) > 127)).mean() > 0.98
    assert np.abs(video.read_images([path])[0].astype(int) - ONE).mean() < 2


def test_masks_of_any_editor(tmp_path):
    inside = np.zeros((20, 30), bool)
    inside[4:12, 6:20] = True
    white = inside.astype(np.uint8) * 255
    blank = np.zeros((20, 30, 4), np.uint8)
    blank[inside] = 255
    shut = np.full((20, 30, 4), 255, np.uint8)                              # all white; only its alpha says what is in
    shut[..., 3] = white
    ways = [white, inside, white.astype(np.uint16) * 257, np.stack([white] * 3, -1), blank, shut,
            Image.fromarray(white).convert("P"), Image.fromarray(blank).convert("LA"), (white / 255).astype(np.float32)]
    for n, way in enumerate(ways):
        kind = "tif" if getattr(way, "dtype", None) == np.float32 else "png"
        save(f"{n}.{kind}", way)(tmp_path)
    masks = video.read_masks(tmp_path)
    assert masks.shape == (len(ways), 20, 30) and masks.dtype == bool
    assert (masks == inside).all((1, 2)).tolist() == [True] * len(ways)


NO_PHOTOS = {
    "a GIF that moves": (pillow("a.gif"), "a.gif is an animation of 4 pictures, where a photo is wanted"),
    "a WebP that moves": (pillow("a.webp"), "a.webp is an animation of 4 pictures"),
    "an APNG": (pillow("a.png"), "a.png is an animation of 4 pictures"),
    "pages": (pages, "pages.tif is a file of 2 pictures"),
    "a video named png": (lambda d: film(d / "a.mp4", scene()).rename(d / "a.png"),
                          "a.png is no picture that can be read"),
    "a bomb": (bomb, "bomb.png is too large a picture"),
    "HEIC": (text("a.heic", "\0\0\0\x18ftypheic"), "a.heic is of a kind that is not read here.*magick a.heic a.png"),
    "HEIC named jpg": (text("a.jpg", "\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
                       "a.jpg is a HEIC picture, which is not read here.*magick a.jpg a.png"),
    "empty": (text("a.jpg", ""), r"a.jpg is empty \(0 bytes\)"),
    "not there": (lambda d: d / "absent.jpg", "absent.jpg does not exist"),
}


@pytest.mark.parametrize("name", NO_PHOTOS)
def test_no_photos(name, tmp_path):
    make, words = NO_PHOTOS[name]
    with pytest.raises(BadInput, match=words):
        video.read_images([make(tmp_path)])


def test_a_photo_that_cannot_be_read_is_not_left_out_of_its_folder_in_silence(tmp_path):
    PNG(tmp_path)
    (tmp_path / "b.HEIC").write_bytes(b"x")
    with pytest.raises(BadInput, match="b.HEIC is of a kind that is not read here"):
        video.read_images(tmp_path)


def test_a_large_photo_of_a_phone_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 96 * 2 // 3)         # a third fewer than it has: Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pictures.read_photo(PNG(tmp_path)).shape == (64, 96, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 96 // 3)
    with pytest.raises(BadInput, match="a.png is too large a picture"):
        pictures.read_photo(tmp_path / "a.png")


# -- what a file says beside its pixels ------------------------------------------------------------------------------
def chunked(make, name: bytes, data: bytes):
    """A PNG with one more chunk after its head."""
    def adding(folder):
        path = make(folder)
        old = path.read_bytes()
        chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        path.write_bytes(old[:33] + chunk + old[33:])
        return path
    return adding


def linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def p3(rgb) -> list[int]:
    """Display P3 with sRGB's curve -> sRGB."""
    rows = ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979))
    light = [linear(value / 255) for value in rgb]
    return [round(255 * srgb_code(min(1, max(0, sum(m * x for m, x in zip(row, light)))))) for row in rows]


def test_the_gamut_that_a_png_signals(tmp_path):
    for make in (save("a.png", ONE), pillow("b.png", duration=50), save("c.png", CLEAR[0])):
        path = chunked(make, b"cICP", bytes([12, 13, 0, 1]))(tmp_path)
        for frame in video.read_clip(path):
            assert np.abs(frame[12, 20].astype(int) - p3(RED)).max() <= 1
            assert np.abs(frame[52, 80].astype(int) - p3(BLUE)).max() <= 1
        plain = chunked(make, b"cICP", bytes([1, 13, 0, 1]))(tmp_path)
        assert video.read_clip(plain)[0, 12, 20].tolist() == list(RED)
    assert video.read_clip(tmp_path / "c.png")[0, 52, 20].tolist() == [255] * 3


def hdr_avif(folder):
    if not features.check("avif"):
        pytest.skip("Pillow reads no AVIF here")
    path = save("a.avif", ONE)(folder)
    before, mark, after = path.read_bytes().partition(b"colrnclx")
    assert mark
    path.write_bytes(before + mark + struct.pack(">HH", 9, 18) + after[4:])
    return path


@pytest.mark.parametrize(("make", "words"), [
    (chunked(save("a.png", ONE), b"cICP", bytes([9, 16, 0, 1])), r"a.png is a picture of high dynamic range \(PQ\)"),
    (chunked(pillow("a.png"), b"cICP", bytes([9, 18, 0, 1])), r"a.png is a picture of high dynamic range \(HLG\)"),
    (hdr_avif, r"a.avif is a picture of high dynamic range \(HLG\)")])
def test_hdr_pictures_are_refused(make, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        video.read_clip(make(tmp_path))


@pytest.mark.parametrize("noted", ["3", "5" * 5000])
def test_a_png_with_a_word_on_frames_is_no_strip_of_ours(noted, tmp_path):
    note = PngImagePlugin.PngInfo()
    note.add_text("frames", noted)
    assert video.read_clip(save("a.png", ONE, pnginfo=note)(tmp_path)).shape == (1, 64, 96, 3)
    for wrong in ("5" * 5000, "97", "192", "0", "-3", "three", "7"):           # of 96 columns
        note = PngImagePlugin.PngInfo()
        note.add_text(pictures.STRIP, wrong)
        assert video.read_clip(save("a.png", ONE, pnginfo=note)(tmp_path)).shape == (1, 64, 96, 3)


def test_a_gif_is_whole_with_more_after_its_trailer_or_without_one(tmp_path):
    path = pillow("a.gif", duration=100)(tmp_path)
    whole = path.read_bytes()
    assert whole.endswith(b"\0;")
    for data in (whole + b"more, of some program", whole + b"\r\n", whole[:-1]):
        path.write_bytes(data)
        assert numbers_in(video.read_clip(path)) == [0, 1, 2, 3]
    for less in (2, 5, 20, len(whole) // 2):
        path.write_bytes(whole[:-less])
        with pytest.raises(BadInput, match="a.gif is damaged: decoded [1-3] of [2-4] frames, where it breaks off"):
            video.clip_times(path)


# -- size and memory -------------------------------------------------------------------------------------------------
def vast_gif(folder):
    """13000 x 13000 in some forty bytes."""
    path = folder / "vast.gif"
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 13000, 13000, 128, 0, 0) + bytes(6)
                     + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0;")
    return path


@pytest.mark.parametrize("read", [lambda path: list(reading.frames(path)), reading.extent, reading.read_photo])
def test_a_picture_has_no_more_pixels_than_a_frame_may_have(read, tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(BadInput, match="vast.gif is too large a picture: more than 134217728 pixels"):
        read(vast_gif(tmp_path))


def test_a_page_that_is_larger_than_the_first(tmp_path, monkeypatch):
    path = save("a.tif", ONE, save_all=True, append_images=[Image.fromarray(ONE.repeat(2, 0))])(tmp_path)
    monkeypatch.setattr(pictures, "LARGEST", 64 * 96)
    assert next(reading.frames(path, [0]))[1].shape == (64, 96, 3)
    with pytest.raises(BadInput, match="a.tif is too large a picture"):
        list(reading.frames(path, [1]))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_frames_of_an_animation_are_brought_to_size_one_by_one(name, tmp_path, monkeypatch):
    path, order = pillow(name)(tmp_path), []
    read, fit = pictures.to_srgb, reading.fit_size
    monkeypatch.setattr(pictures, "to_srgb", lambda *how: order.append("read") or read(*how))
    monkeypatch.setattr(reading, "fit_size", lambda *how: order.append("fit") or fit(*how))
    assert [number for number, _ in reading.frames(path, [2, 0, 2], (16, 24))] == [0, 2]
    assert order == ["read", "fit", "read", "fit"]


# -- names -----------------------------------------------------------------------------------------------------------
def test_natural_order_of_strange_digits(tmp_path):
    names = ["\u00b23.png", "3.png", "\u0663.png", "10.png", "03.png", "a2.png", "a10.png"]
    order = [path.name for path in video.natural([tmp_path / name for name in names])]
    assert order[:1] != ["10.png"] and order.index("a2.png") < order.index("a10.png")
    assert set(order) == set(names) and order == [path.name for path in video.natural(
        [tmp_path / name for name in reversed(names)])]


def test_what_is_no_file_is_not_said_not_to_exist(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("folder.png", "pipe.png"):
        with pytest.raises(BadInput, match=f"{name} is no file"):
            video.read_images([tmp_path / name])
