"""A trained tokenizer gives a text back, and is known by its digest."""

from quad_tasks.core.lm.tokenizer import encode, load_tokenizer, tokenizer_sha256, train_tokenizer

TEXTS = ["the ship left the harbour", "rain fell on the deck", "a gull cried over the mast"] * 4


def test_a_trained_tokenizer_is_reversible_and_its_digest_survives_saving(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    text = "unseen ünïcode \u2028 text"
    assert tokenizer.decode(encode(tokenizer, [text])[0]) == text
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_sha256(load_tokenizer(tmp_path)) == tokenizer_sha256(tokenizer)
