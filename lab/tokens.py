"""The tokenizer: byte-level BPE as CLIP's, learnt from every caption there can be."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def make(captions: Sequence[str], pad: str = END) -> CLIPTokenizer:
    """A tokenizer that has every word of the captions as one token, and every byte besides.

    Pairs are merged most frequent first, a tie by the alphabet, until no word is in two parts.
    The end of text is the largest token, where CLIP looks for it.

    Args:
        pad: What fills a short text; Stable Diffusion uses the end of text.
    """
    spell = ByteLevel(add_prefix_space=False)
    counts = Counter(
        spell.pre_tokenize_str(word)[0][0]
        for caption in captions
        for word in re.findall(r"[^\W\d_]+|\d|[^\w\s]+", caption.lower())
    )
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in zip(parts, parts[1:], strict=False):
                # The root keeps 'a', in every caption, from outweighing all else
                pairs[pair] += int(counts[word] ** 0.5) + 1
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        for word, parts in words.items():
            i = 0
            while i < len(parts) - 1:
                if parts[i] == left and parts[i + 1] == right:
                    parts[i : i + 2] = [left + right]
                i += 1
            words[word] = parts
    letters = sorted(ByteLevel.alphabet())
    pieces = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *dict.fromkeys(left + right for left, right in merges),
        *([pad] if pad != END else []),
        START,
        END,
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(
        vocab=vocabulary,
        # annotated as texts, and handed on to a BPE that takes pairs
        merges=merges,  # type: ignore[arg-type]
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=pad,
        model_max_length=LENGTH,
    )
