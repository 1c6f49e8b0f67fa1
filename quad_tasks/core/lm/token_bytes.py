"""Count the UTF-8 bytes of text that a document's predicted tokens stand for.

Bits per byte divide the loss of what was predicted by the bytes of what was predicted. The first token of a document is
never predicted, so its bytes are left out. Where the tokenizer puts a special token (BOS) before the text, that is the
first token: it stands for no byte, and every byte counts. Special tokens after the text stand for none either.

Where a token ends is what the fast tokenizer's offsets say, in characters of the text as it was given. Tokens may share
a character: the bytes of one, or a space that the tokenizer put before the text. Such a character is divided by what
each token after the first holds of it. Rejected: decoding the tokens but the first (bytes that are no whole character
decode to others, and a leading space is dropped).

Shape: T tokens of a text.
"""

import itertools
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast as FastTokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "▁"
"""SentencePiece's sign for a space."""


def target_bytes(tokenizer: FastTokenizer, texts: Sequence[str], max_tokens: int | None = None) -> list[int]:
    """Count the UTF-8 bytes of every text that lie in its target tokens: all tokens but the first.

    Args:
        tokenizer: with its own convention of special tokens, as for `model.encode`.
        texts: counted one by one.
        max_tokens: tokens of a text that are read; None: all.

    Returns:
        For each text its bytes; 0 for a text of fewer than two tokens.
    """
    counts = []
    for text in texts:
        ends = byte_ends(tokenizer, text)[:max_tokens]
        counts.append(ends[-1] - ends[0] if ends else 0)
    return counts


def byte_ends(tokenizer: FastTokenizer, text: str) -> list[int]:
    """Find the byte of the text at which every token ends, [T]; the last one ends at the text's end."""
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    offsets, pieces = encoding["offset_mapping"], encoding.tokens()
    byte_at = [0, *itertools.accumulate(len(character.encode()) for character in text)]
    # a token of no width, such as an added special one, ends where the one before it does
    char_ends = list(itertools.accumulate((end for _, end in offsets), max))
    ends = [byte_at[end] for end in char_ends]
    if ends:
        ends[-1] = byte_at[-1]
    whole_bytes = _is_byte_level(tokenizer)
    for k in range(len(ends) - 2, -1, -1):
        start, end = offsets[k + 1]
        if start < end and start < char_ends[k]:  # the next token holds a part of this one's last character
            earliest = byte_at[offsets[k][0]]
            ends[k] = max(earliest, ends[k + 1] - _piece_bytes(pieces[k + 1], whole_bytes))
    return ends


def _piece_bytes(piece: str, whole_bytes: bool) -> int:
    """Count the bytes that a piece of the vocabulary stands for."""
    if _BYTE_TOKEN.fullmatch(piece):
        return 1
    return len(piece) if whole_bytes else len(piece.replace(_SPACE, " ").encode())


def _is_byte_level(tokenizer: FastTokenizer) -> bool:
    """Tell whether each character of a piece stands for one byte (GPT-2's alphabet)."""
    return "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
