"""The sprites tokenizer: a CLIPTokenizer whose byte-pair merges were learned on the world's captions.

Every word of the world is one token; a word it never saw falls apart into letters and is still readable.
"""
from __future__ import annotations

import json

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .corpus import words_of
from .looks import Vocabulary
from .sizes import MAX_WORDS

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
MORE_WORDS = ("object", "thing", "toy", "pet")     # understood by captions of the judges, whatever the vocabulary


def make_tokenizer(vocabulary: Vocabulary) -> CLIPTokenizer:
    """Train the merges on captions of the vocabulary, without the nonsense verbs (they shall stay in pieces)."""
    counted: dict[str, int] = {}
    for caption in words_of(vocabulary):
        for word in caption.replace(".", " .").split():
            counted[word] = counted.get(word, 0) + 1
    known = [word for word, count in counted.items() if count >= 5] + list(MORE_WORDS)
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=2000, min_frequency=1, special_tokens=[START, END],
                                  end_of_word_suffix="</w>", initial_alphabet=list(LETTERS), show_progress=False)
    # each word once, with single letters so that both forms of every letter (inside a word, at its end) exist
    trained.train_from_iterator([" ".join(known), " ".join(LETTERS)], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_WORDS, unk_token=END,
                         bos_token=START, eos_token=END, pad_token=END)
