"""What the files of each format hold beside the documents; `tests/test_plugins.py` reads all of them back."""

from quad_tasks.commands.export.formats import _code, _plain, _yaml


def test_a_card_shows_what_comes_from_the_pool_as_text():
    hostile = "a|b\n<script>x</script> [link](http://evil) *bold* `code`"
    assert _plain(hostile) == (r"a\|b &lt;script&gt;x&lt;/script&gt; \[link\]\(http://evil\) \*bold\* \`code\`")
    assert [_yaml(text) for text in ("cc-by-4.0", "a: b", "x\ny: z")] == ["cc-by-4.0", '"a: b"', '"x\\ny: z"']
    assert _code("pool`|.jsonl\n# title") == "pool'¦.jsonl # title"
