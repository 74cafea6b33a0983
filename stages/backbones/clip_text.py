"""Prompts with learned tokens through a CLIP tokenizer and text encoder; neither of them changes.

Legend: B prompts, L positions, D width.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.errors import BadInput
from ..core.settings import check_prompt

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Layout:
    """A prompt as the text encoder reads it. ids: L token ids. words: its whitespace words and their positions in L.
    placeholders: the learned tokens in it and theirs."""

    ids: list[int]
    words: list[tuple[str, range]]
    placeholders: list[tuple[str, range]]


def embed(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, length: int, prompts: Sequence[str],
          tokens: Mapping[str, Tensor]) -> Tensor:
    """Prompts -> (B, L, D), computed where the encoder is. tokens: {"<toy>": (n, width)}, see UNet3D.embed."""
    counts = {name: len(rows) for name, rows in tokens.items()}
    laid = [lay_out(tokenizer, length, prompt, counts) for prompt in prompts]
    ids_BL = torch.tensor([text.ids for text in laid], device=next(encoder.parameters()).device)
    width = encoder.get_input_embeddings().weight.shape[1]
    for name, rows in tokens.items():
        if rows.ndim != 2 or rows.shape[1] != width:
            raise BadInput(f"the token {name} is of shape {tuple(rows.shape)}, and the text encoder of this base reads "
                           f"vectors of {width} numbers", "it was learned on another base: learn it again on this one")
    places = [(row, at, tokens[name]) for row, text in enumerate(laid) for name, at in text.placeholders]
    with _rows_replaced(encoder.get_input_embeddings(), places):
        return encoder(ids_BL).last_hidden_state


def lay_out(tokenizer: CLIPTokenizer, length: int, prompt: str, counts: Mapping[str, int]) -> Layout:
    """A prompt on L = `length` positions. counts: how many vectors each placeholder has.

    The prompt is cut at its placeholders; what lies between is tokenized as the tokenizer would. At a placeholder
    the start token's id stands once per vector; its embedding is what `embed` replaces. Each token's character
    offsets tell which whitespace word it belongs to. Raises BadInput for one that is too long to be any.
    """
    check_prompt(prompt)
    ids, chars, placeholders = [tokenizer.bos_token_id], [(-1, -1)], []          # chars: (from, to) of each token
    for start, stop in _pieces(prompt, counts):
        if (piece := prompt[start:stop]) in counts:
            placeholders.append((piece, range(len(ids), len(ids) + counts[piece])))
            ids += [tokenizer.bos_token_id] * counts[piece]
            chars += [(start, stop)] * counts[piece]
            if len(ids) > length - 1:
                raise BadInput(f"the prompt '{prompt}' leaves no room for {piece}: the text encoder reads {length} "
                               "tokens", "write it shorter")
        else:
            found = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids += found.input_ids
            chars += [(start + a, start + b) for a, b in found.offset_mapping]
    ids, chars = ids[:length - 1], chars[:length - 1]
    words = []
    for match in re.finditer(r"\S+", prompt):
        name, start, stop = _bare(match[0], match.start(), counts)
        inside = [at for at, (a, b) in enumerate(chars) if start <= a and b <= stop]
        words.append((name, range(inside[0], inside[-1] + 1) if inside else range(0)))
    ids += [tokenizer.eos_token_id]
    return Layout(ids + [tokenizer.pad_token_id] * (length - len(ids)), words, placeholders)


def _pieces(prompt: str, names: Iterable[str]) -> list[tuple[int, int]]:
    """Cut a prompt at the placeholders it names: (start, stop) of each placeholder and of what lies between."""
    longest_first = sorted(names, key=len, reverse=True)
    if not longest_first:
        return [(0, len(prompt))]
    cuts, at = [], 0
    for match in re.finditer("|".join(map(re.escape, longest_first)), prompt):
        cuts += [(at, match.start()), match.span()]
        at = match.end()
    return [(start, stop) for start, stop in [*cuts, (at, len(prompt))] if start < stop]


def _bare(word: str, offset: int, names: Iterable[str]) -> tuple[str, int, int]:
    """A whitespace word -> (name, start, stop): the placeholder in it, or the word without punctuation around it."""
    for name in sorted(names, key=len, reverse=True):
        if (at := word.find(name)) >= 0:
            return name, offset + at, offset + at + len(name)
    inner = [at for at, letter in enumerate(word) if letter.isalnum() or letter == "_"]          # what \w is
    start, stop = (inner[0], inner[-1] + 1) if inner else (0, 0)
    return word[start:stop] or word, offset + start, offset + stop


@contextmanager
def _rows_replaced(embedding: nn.Module, places: Sequence[tuple[int, range, Tensor]]) -> Iterator[None]:
    """Inside, the embedding's output (B, L, width) holds the given (n, width) rows at (row of B, n positions of L)."""
    def on_output(module: nn.Module, args: tuple, looked_up: Tensor) -> Tensor:
        out = looked_up.clone()
        for row, at, vectors in places:
            out[row, at.start:at.stop] = vectors.to(out)
        return out

    handle = embedding.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()
