"""What the files of each format hold beside the documents; `tests/test_plugins.py` reads all of them back."""

import json
from dataclasses import replace

import pytest

from quad_tasks.commands.export.formats import (
    ExportForm,
    _code,
    _line,
    _plain,
    _short_names,
    _size_category,
    _write_card,
    _yaml,
)
from quad_tasks.config.schema import FieldNames, ReferenceConfig
from quad_tasks.storage.input_documents import Fields, make_document
from quad_tasks.storage.store import open_store
from quad_tasks.testing import _exported_run

KNOWN = {"n_tokens": 3, "arm": 0, "stage": 0, "round": 1, "influence": 0.5, "scored": True}


def exported(record, names):
    """Return a record as ingest reads it, the line that is exported of it, and what ingest reads of that line."""
    document = make_document(record, Fields(**names), "file")
    own = {"id": document.id, "text": document.text, "source": document.source}
    form = ExportForm(FieldNames(**names), "2026-01-02")
    line = _line({**own, "metadata": json.dumps(document.metadata), **KNOWN}, form)
    return document, line, make_document(line, Fields(**names), "another file")


@pytest.mark.parametrize(
    ("record", "names"),
    [
        (
            {"text": "a text", "meta": {"source": "web", "doc_id": "7", "lang": "en"}, "url": "u"},
            {"id": "meta.doc_id", "source": "meta.source", "metadata": "meta"},
        ),
        ({"metadata": {"text": "a text", "lang": "en"}, "id": "7"}, {"text": "metadata.text"}),
        ({"doc": {"id": 7, "body": "a text"}, "lang": "en"}, {"id": "doc.id", "text": "doc.body"}),
        ({"id": "7", "text": "a text", "meta": {"kind": "x", "deep": {"lang": "en"}}}, {"source": "meta.kind.name"}),
        ({"id": "7", "text": "a text", "meta": "x"}, {"source": "meta.kind", "metadata": "meta"}),
        ({"id": "7", "text": "a text", "meta": {"kind": "x"}}, {"source": "meta.kind.name", "metadata": "meta"}),
    ],
)
def test_a_line_is_read_as_the_document_it_was_made_of(record, names):
    document, line, again = exported(record, names)
    assert (again.id, again.text, again.source) == (document.id, document.text, document.source)
    assert document.metadata.items() <= again.metadata.items()
    assert line["added"] == "2026-01-02"


@pytest.mark.parametrize(
    "names",
    [
        {"id": "meta", "text": "meta.text"},
        {"text": "meta.text", "id": "meta.text.id"},
        {"id": "url", "source": "url"},
        {"text": "body", "metadata": "body.meta"},
    ],
)
def test_fields_that_would_be_written_over_each_other_have_quads_names(names):
    row = {"id": "7", "text": "a text", "source": "web", "metadata": '{"lang": "en"}', **KNOWN}
    line = _line(row, ExportForm(FieldNames(**names), "2026-01-02"))
    assert (line["id"], line["text"], line["source"], line["metadata"]["lang"]) == ("7", "a text", "web", "en")
    assert list(_short_names(FieldNames(**names)).values()) == ["id", "text", "source", "metadata"]


@pytest.mark.parametrize(
    ("rows", "category"),
    [(999, "n<1K"), (10**9 - 1, "100M<n<1B"), (2 * 10**9, "1B<n<10B"), (10**11, "100B<n<1T"), (10**12, "n>1T")],
)
def test_a_size_category_is_one_of_the_hubs(rows, category):
    assert _size_category(rows) == category


def test_a_card_names_the_columns_there_are_and_every_reference_set(tmp_path):
    run = _exported_run()
    fields = FieldNames(id="key.value", text="content.value")
    sets = {"law": {"inputs": ["/a/law.jsonl"], "weight": 2.0}, "news": {"inputs": ["/b/news.jsonl", "/b/more.jsonl"]}}
    changes = {"pool": run.config.pool.model_copy(update={"fields": fields}), "reference": ReferenceConfig(sets=sets)}
    several = replace(run, config=run.config.model_copy(update=changes), token_ids=True)
    cards = []
    for one in (run, several):
        _write_card(open_store(str(tmp_path)), [], one)
        cards.append((tmp_path / "README.md").read_text())
    assert "| `key.value`, `content.value`, `source` | as in the pool |" in cards[1]
    assert "| `input_ids` | token ids" in cards[1]
    assert "- Reference `law`, weight 2.0: `law.jsonl`\n" in cards[1]
    assert "- Reference `news`, weight 1.0: `news.jsonl`, `more.jsonl`\n" in cards[1]
    assert "input_ids" not in cards[0]
    assert "- Reference: `x`\n" in cards[0]


def test_a_card_shows_what_comes_from_the_pool_as_text():
    hostile = "a|b\n<script>x</script> [link](http://evil) *bold* `code`"
    assert _plain(hostile) == (r"a\|b &lt;script&gt;x&lt;/script&gt; \[link\]\(http://evil\) \*bold\* \`code\`")
    assert [_yaml(text) for text in ("cc-by-4.0", "a: b", "x\ny: z")] == ["cc-by-4.0", '"a: b"', '"x\\ny: z"']
    assert _code("pool`|.jsonl\n# title") == "pool'¦.jsonl # title"
