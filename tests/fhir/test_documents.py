"""Cutting documents: the same pieces as decoding the whole gives, wherever the blocks end; and what is broken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrseq.fhir.documents import split_documents
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.limits import Limits

TEXT = st.text('"\\[]{},:aé entry', max_size=8)
VALUE = st.recursive(
    st.one_of(TEXT, st.none(), st.integers(-5, 5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
OBJECT = st.dictionaries(TEXT.filter(lambda key: key != "entry"), VALUE, max_size=3)
BUNDLE = st.builds(
    lambda before, entries, after: {**before, "entry": entries, **after}, OBJECT, st.lists(OBJECT, max_size=3), OBJECT
)


def pieces(text: bytes, size: int = 1 << 18, limits: Limits = Limits()) -> list[tuple[str, Any]]:  # noqa: B008
    blocks = iter([text[i : i + size] for i in range(0, len(text), size)])
    return [(p.kind, p.reason if p.kind == "fault" else json.loads(p.raw)) for p in split_documents(blocks, limits)]


def expected(document: Any) -> list[tuple[str, Any]]:
    if isinstance(document, list):
        return [("item", item) for item in document]
    if "entry" not in document:
        return [("document", document)]
    return [*(("entry", entry) for entry in document["entry"]), ("bundle", {**document, "entry": []})]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(OBJECT, BUNDLE, st.lists(OBJECT, max_size=3)), max_size=4),
    st.integers(1, 60),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_pieces_are_those_of_the_decoded_documents(
    documents: list[Any], size: int, indent: int | None, escaped: bool
) -> None:
    text = "\n".join(json.dumps(d, indent=indent, ensure_ascii=escaped) for d in documents)
    assert pieces(text.encode(), size) == [piece for d in documents for piece in expected(d)]


def test_every_whole_entry_of_a_truncated_bundle() -> None:
    bundle = {"resourceType": "Bundle", "entry": [{"resource": {"id": f"{i}", "a": "}]"}} for i in range(20)]}
    text = json.dumps(bundle, indent=1).encode()
    for end in range(1, len(text)):
        got = pieces(text[:end])
        entries = [piece for kind, piece in got if kind == "entry"]
        assert entries == bundle["entry"][: len(entries)]
        assert got[-1] == ("fault", Reason.TRUNCATED_FILE)
        # what was already complete is there: at most one entry is lost to the cut
        assert len(entries) >= text[:end].count(b'"a": "}]"\n   }\n  }')


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (b"", []),
        (b" \n ", []),
        (b"\xef\xbb\xbf{}\n\xef\xbb\xbf{}", [("document", {}), ("document", {})]),
        (b"oops", [("fault", Reason.MALFORMED_JSON)]),
        (b"oops{}", [("fault", Reason.MALFORMED_JSON), ("document", {})]),
        (b"]]]{}", [("fault", Reason.MALFORMED_JSON), ("document", {})]),
        (
            b'[1, {"a": 2}, true]',
            [("fault", Reason.MALFORMED_JSON), ("item", {"a": 2}), ("fault", Reason.MALFORMED_JSON)],
        ),
        (b'[{"a": 2}}', [("item", {"a": 2}), ("fault", Reason.MALFORMED_JSON)]),
        (b'{"entry": [{"a": 1}, ', [("entry", {"a": 1}), ("fault", Reason.TRUNCATED_FILE)]),
        (b'{"entry": [{"a": ', [("fault", Reason.TRUNCATED_FILE)] * 2),
        (b'{"a": {"entry": [{"b": 1}]}}', [("document", {"a": {"entry": [{"b": 1}]}})]),
    ],
)  # fmt: skip
def test_what_is_odd_or_broken(text: bytes, want: list[Any]) -> None:
    assert pieces(text) == want
    assert pieces(text, 1) == want


def test_caps_on_size_and_depth_cost_the_record_alone() -> None:
    small = Limits(record_bytes=100, depth=20)
    deep = "[" * 30 + "]" * 30
    entries = f'{{"a": 1}}, {{"a": "{"x" * 200}"}}, {{"a": {deep}}}, {{"a": 2}}'
    want = [
        ("entry", {"a": 1}),
        ("fault", Reason.TOO_LARGE),
        ("fault", Reason.TOO_DEEP),
        ("entry", {"a": 2}),
        ("bundle", {"entry": []}),
    ]
    for size in (1, 7, 1000):
        assert pieces(f'{{"entry": [{entries}]}}'.encode(), size, small) == want
        assert pieces(f'{{"a": {deep}}} {{"b": "{"x" * 200}"}} {{}}'.encode(), size, small) == [
            ("fault", Reason.TOO_DEEP),
            ("fault", Reason.TOO_LARGE),
            ("document", {}),
        ]
