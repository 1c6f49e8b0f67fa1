"""Bytes of predicted tokens, against the vocabulary's own bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from quad_tasks.core.lm.token_bytes import target_bytes
from quad_tasks.core.lm.tokenizer import encode, train_tokenizer


def with_bos(tokenizer):
    """The same tokenizer, putting its end-of-text token before each text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    sign = tokenizer.eos_token
    backend.post_processor = processors.TemplateProcessing(
        single=f"{sign} $A {sign}", special_tokens=[(sign, tokenizer.eos_token_id)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=sign, pad_token=sign)


BYTE_LEVEL = train_tokenizer(["the ship left the harbour", "é😀 naïve 日本"] * 4, 300)
OPENED = with_bos(BYTE_LEVEL)


def with_byte_fallback(scheme):
    """A SentencePiece-like tokenizer: spaces as a sign, one of them before the text, unknown characters as bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abeht", "th", "the", "▁the"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.integers(2, 12))
def test_a_byte_level_tokens_bytes_are_those_of_its_piece(text, read):
    pieces = BYTE_LEVEL.convert_ids_to_tokens(encode(BYTE_LEVEL, [text])[0])
    if "<|endoftext|>" not in text:
        assert target_bytes(BYTE_LEVEL, [text]) == [sum(map(len, pieces[1:]))]
        assert target_bytes(BYTE_LEVEL, [text], read) == [sum(map(len, pieces[1:read]))]


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_behind_a_token_that_opens_every_text_all_bytes_count(text):
    assert target_bytes(OPENED, [text]) == [len(text.encode())]


@pytest.mark.parametrize(
    ("scheme", "text", "first", "expected"),
    [
        ("never", "the ship", "the", 5),
        ("never", "日b", "<0xE6>", 3),
        ("first", "the ship", "▁the", 5),
        ("first", "thé", "▁", 4),  # the space that was put before the text is no byte of it
        ("first", "日b", "▁", 4),
        ("first", " the the", "▁the", 4),
        ("first", "the", "▁the", 0),
    ],
)
def test_bytes_of_a_tokenizer_that_falls_back_to_bytes_are_those_worked_by_hand(scheme, text, first, expected):
    tokenizer = with_byte_fallback(scheme)
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, [text])[0])[0] == first
    assert target_bytes(tokenizer, [text]) == [expected]


def test_no_text_has_no_bytes():
    assert target_bytes(BYTE_LEVEL, []) == []
    assert target_bytes(BYTE_LEVEL, ["", "t"]) == [0, 0]
