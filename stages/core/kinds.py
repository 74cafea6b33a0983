"""Which names of files are taken for what. What a file really is, its content says (pictures.py, containers.py): these
sets only decide what a folder is searched for. Imports nothing."""
from __future__ import annotations

PICTURES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".avif"}        # photos, frames, masks
ANIMATIONS = {".gif", ".webp", ".apng"}                         # read frame by frame as pictures are, not as videos are
CLIPS = ANIMATIONS | {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp",
                      ".wmv", ".flv", ".ogv", ".mxf"}
UNREADABLE = {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd"}       # photos, not read
STRIP = "videomage frames"            # a PNG's text: how many frames lie side by side in it
