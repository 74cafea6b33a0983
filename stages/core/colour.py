"""Colours of any video as sRGB: high dynamic range, wide gamuts, transparency. Written in the open, in numpy.

HDR, that is the PQ curve (SMPTE ST 2084) or HLG (ARIB STD-B67; both in ITU-R BT.2100), usually with BT.2020 primaries:

    light     PQ: its EOTF, in cd/m2. HLG: the inverse OETF, then the OOTF of a screen of 1000 cd/m2, gamma 1.2
    white     203 cd/m2 (ITU-R BT.2408) is 1
    gamut     linear light from the file's primaries (not said: BT.2020's) to BT.709's; what is negative then is 0
    shoulder  up to 3/4 unchanged; above, the largest of R, G, B becomes 3/4 + s / (1 + 4 s), s being what exceeds 3/4:
              slope 1 at the start, 1 never reached; the other two are scaled with it, which keeps the hue
    code      the sRGB curve (IEC 61966-2-1), rounded to 8 bits

SDR keeps its code values, as screens show it. Only where its primaries are wider than BT.709's (BT.2020, P3) it goes
through linear light by the sRGB curve, and what lies outside is clipped.
"""
from __future__ import annotations

import numpy as np

PQ, HLG = 16, 18                                           # transfer characteristics of ITU-T H.273
WHITE, PEAK, KNEE = 203.0, 1000.0, 0.75                    # cd/m2, cd/m2, of white
PRIMARIES = {                                              # H.273's number: (x, y) of red, green, blue; white is D65
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),           # BT.709, sRGB
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),           # BT.2020
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),          # Display P3
}
D65 = (0.3127, 0.3290)
UNSAID = (0, 2)                                            # H.273's numbers for primaries that are not said


def is_hdr(transfer: int) -> bool:
    return transfer in (PQ, HLG)


def is_wide(primaries: int) -> bool:
    return primaries in PRIMARIES and primaries != 1


def to_srgb(code_HW3: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """R'G'B' in 0..1 as the video codes them, float (H, W, 3) -> sRGB uint8. transfer, primaries: H.273's numbers."""
    code = np.clip(np.asarray(code_HW3, np.float32), 0, 1)
    if not is_hdr(transfer):
        light = np.clip(decode_srgb(code) @ to_709(primaries).T, 0, 1)
    else:
        primaries = 9 if primaries in UNSAID else primaries
        light = (pq_light(code) if transfer == PQ else hlg_light(code)) / WHITE
        light = shoulder(np.maximum(light @ to_709(primaries).T, 0))
    return np.rint(encode_srgb(light) * 255).astype(np.uint8)


def pq_light(code: np.ndarray) -> np.ndarray:
    """ST 2084, equation 4.1: code 0..1 -> cd/m2 up to 10000."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.power(code, 1 / m2)
    return 1e4 * np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1)


def hlg_light(code: np.ndarray) -> np.ndarray:
    """BT.2100, table 5: code 0..1 of R'G'B' (..., 3) -> cd/m2 on a screen of PEAK."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(code <= 0.5, code ** 2 / 3, (np.exp((code - c) / a) + b) / 12)
    luma = scene @ np.array([0.2627, 0.6780, 0.0593], scene.dtype)
    return PEAK * luma[..., None] ** 0.2 * scene


def to_709(primaries: int) -> np.ndarray:
    """The 3 x 3 matrix from linear RGB of these primaries to that of BT.709's, both with white D65."""
    return np.linalg.solve(_to_xyz(1), _to_xyz(primaries if primaries in PRIMARIES else 1)).astype(np.float32)


def _to_xyz(primaries: int) -> np.ndarray:
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in PRIMARIES[primaries]]).T
    white = np.array([D65[0] / D65[1], 1, (1 - D65[0] - D65[1]) / D65[1]])
    return columns * np.linalg.solve(columns, white)


def shoulder(light: np.ndarray) -> np.ndarray:
    """Linear RGB (..., 3), white at 1 -> below 1, by the curve that the head of this file states."""
    most = light.max(-1, keepdims=True)
    above = np.maximum(most - KNEE, 0)
    return light * np.where(most > KNEE, (KNEE + above / (1 + above / (1 - KNEE))) / np.maximum(most, KNEE), 1)


def encode_srgb(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(np.maximum(light, 0.0031308), 1 / 2.4) - 0.055)


def decode_srgb(code: np.ndarray) -> np.ndarray:
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def over_white(rgba_HW4: np.ndarray) -> np.ndarray:
    """uint8 (..., 4), straight alpha -> uint8 (..., 3) as it looks on white paper."""
    rgb, alpha = rgba_HW4[..., :3].astype(np.uint32), rgba_HW4[..., 3:].astype(np.uint32)
    return ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
