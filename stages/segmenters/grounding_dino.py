"""Grounding DINO (Liu et al., 2023): pictures and phrases -> boxes, through transformers' port.

All phrases are asked for in one text, "person. tall horse."; the network lets no word see those of another phrase.
What a box answers to is read from the words themselves, each phrase from its own places in the text: of the labels that
others decode from it, "red car" and "blue car" could not be told apart. Texts that are too long for the network are
asked for in several runs.

Q the boxes that the network always draws, L the places of its text.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import BertTokenizer, GroundingDinoForObjectDetection

from ..core.errors import BadInput, UsageError
from ..core.vision import IMAGENET, Preparation, checked_frames, read_model, read_tokenizer
from .binding import Detection, suppress
from .models import locate

WHAT = "Grounding DINO"
REMEDY = "Fetch it anew: videomage fetch IDEA-Research/grounding-dino-tiny; or name another: --detector"
SHORT_SIDE = 800                                        # of the pictures it was trained on
# what transformers chooses for each part; named, so that the config cannot choose code of the hub
ATTENTION = {"": "eager", "backbone_config": "sdpa", "text_config": "sdpa"}


@dataclass(frozen=True)
class Text:
    """token_ids: of one run, with the special ones. words: {phrase: places of each of its words}; neither punctuation
    nor what the tokenizer does not know is a word."""

    token_ids: list[int]
    words: dict[str, list[list[int]]]


class GroundingDino:
    """Holds the network and the tokenizer beside it. name: a folder or a repository of the hub. Raises
    MissingPrerequisite where it is not on this machine, BadInput where it cannot be used."""

    def __init__(self, name: str, device: str) -> None:
        folder = locate(name, WHAT)
        self.network = read_model({"grounding-dino": GroundingDinoForObjectDetection.from_pretrained}, folder, WHAT,
                                  REMEDY, device, attention=ATTENTION)
        self.prepare, self.device = Preparation.of(folder, SHORT_SIDE, colours=IMAGENET, remedy=REMEDY), device
        if self.prepare.crop:
            raise BadInput(f"{WHAT} in {folder} is not said to look at whole pictures (preprocessor_config.json)",
                           REMEDY)
        if self.network.config.max_text_len < 4:                        # the two ends, one token and its stop
            raise BadInput(f"{WHAT} in {folder} reads no phrase: its max_text_len is "
                           f"{self.network.config.max_text_len}", REMEDY)
        files = {"tokenizer.json": (), "vocab.txt": ()}
        self.tokenizer = read_tokenizer(BertTokenizer, files, folder, WHAT, REMEDY)
        ends = [self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.convert_tokens_to_ids(".")]
        parts = self.network.model.special_tokens.tolist()              # what the network takes for ends of phrases
        if not set(ends) <= set(parts) or len(self.tokenizer) > self.network.config.text_config.vocab_size:
            raise BadInput(f"the tokenizer in {folder} and {WHAT} do not belong together", REMEDY)
        self.start, self.end, self.stop = ends

    def find(self, frames: np.ndarray, at: Sequence[int], phrases: Sequence[str], box_threshold: float,
             text_threshold: float) -> dict[str, list[Detection]]:
        """frames: uint8 (F, H, W, 3); at: those to look at. -> {phrase: what is above the box threshold, and has a word
        above the text threshold; of a phrase without any its best box}, doubles left out."""
        frames, out = checked_frames(frames), {phrase: [] for phrase in phrases}
        best: dict[str, Detection] = {}
        texts = self.texts(phrases)
        for frame in at:
            pixels = self.prepare(frames[frame:frame + 1]).to(self.device)
            for text in texts:
                chances_QL, boxes_Q4 = self._look(pixels, text, frames.shape[1:3])
                for phrase, words in text.words.items():
                    found, surest = _answers(frame, chances_QL, boxes_Q4, words, box_threshold, text_threshold)
                    out[phrase] += suppress(found)
                    if phrase not in best or surest.score > best[phrase].score:
                        best[phrase] = surest
        return {phrase: some or [best[phrase]] for phrase, some in out.items()}

    def texts(self, phrases: Sequence[str]) -> list[Text]:
        """Phrases, in as few texts as the network's limit allows. Raises UsageError for one that is too long for it, or
        of which its tokenizer knows no word."""
        limit = self.network.config.max_text_len
        out = []
        for phrase in dict.fromkeys(phrases):
            read = self.tokenizer(plain(phrase), add_special_tokens=False)
            token_ids, of_word = read["input_ids"], read.word_ids()
            counted = [k for k, token in enumerate(self.tokenizer.convert_ids_to_tokens(token_ids))
                       if token_ids[k] != self.tokenizer.unk_token_id and any(map(str.isalnum, token))]
            if not counted:
                raise UsageError(f"{WHAT} knows no word of '{phrase}'", "describe what to look for in English words")
            if len(token_ids) + 3 > limit:
                raise UsageError(f"'{phrase}' is {len(token_ids)} tokens long, and {WHAT} reads {limit - 3}",
                                 "describe it in fewer words")
            if not out or len(out[-1].token_ids) + len(token_ids) + 1 > limit:
                out.append(Text([self.start, self.end], {}))
            text = out[-1]
            first = len(text.token_ids) - 1                                     # the last is the end of the text
            text.token_ids[first:first] = [*token_ids, self.stop]
            places = {of_word[k]: [first + other for other in counted if of_word[other] == of_word[k]] for k in counted}
            text.words[phrase] = list(places.values())
        return out

    @torch.no_grad()
    def _look(self, pixels: Tensor, text: Text, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """-> each box's probability of each place of the text (Q, L), boxes in pixels of a picture of `size` (Q, 4)."""
        token_ids = torch.tensor([text.token_ids], device=self.device)
        out = self.network(pixels, token_ids, torch.zeros_like(token_ids), torch.ones_like(token_ids))
        boxes_Q4 = out.pred_boxes[0].float().cpu().numpy().astype(np.float64)          # middle and sides, 0..1
        corners = np.concatenate([boxes_Q4[:, :2] - boxes_Q4[:, 2:] / 2, boxes_Q4[:, :2] + boxes_Q4[:, 2:] / 2], 1)
        chances_QL = out.logits[0, :, :len(text.token_ids)].float().sigmoid().cpu().numpy()
        return chances_QL, np.clip(corners, 0, 1) * np.array(size[::-1] * 2)


def plain(phrase: str) -> str:
    """A phrase as it is asked for: small letters, and neither stop nor question mark, which would end it in its middle.
    """
    return re.sub(r"[.?\s]+", " ", phrase).strip().lower()


def _answers(frame: int, chances_QL: np.ndarray, boxes_Q4: np.ndarray, words: Sequence[Sequence[int]],
             box_threshold: float, text_threshold: float) -> tuple[list[Detection], Detection]:
    """The boxes that answer to one phrase, and the surest of all, whether it does or not. A word is as sure as its
    surest token, a phrase as its surest word."""
    chances_QW = np.stack([chances_QL[:, places].max(1) for places in words], 1)
    scores, shares = chances_QW.max(1), (chances_QW > text_threshold).mean(1)

    def box(q: int) -> Detection:
        return Detection(frame, tuple(map(float, boxes_Q4[q])), float(scores[q]), float(shares[q]))

    return [box(q) for q in np.flatnonzero((scores > box_threshold) & (shares > 0))], box(int(scores.argmax()))
