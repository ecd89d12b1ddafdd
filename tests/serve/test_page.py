"""The page, looked at in a browser."""

from __future__ import annotations

import copy
import json
import re

import pytest

from ehrseq.serve.app import PAGE
from tests.serve.browser import CHROMIUM, tab

HOSTILE = "<img src=x onerror=alert(1)><script>document.title='taken'</script>"
DONE = "!document.getElementById('answer').hidden || document.getElementById('status').className === 'bad'"


def test_the_page_takes_nothing_from_elsewhere(client):
    reply = client.get("/")
    source = PAGE.read_text()
    assert reply.text == source
    assert not re.findall(r"(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", source)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|DOMParser", source)
    policy = reply.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert source.count("<script>") == source.count("<style>") == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium to look at the page")
    with tab(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def healthy(client, simulated):
    """Someone for whom all three outcomes are forecast."""
    for who, bundle in simulated.bundles.items():
        [forecast] = client.post("/forecast", json=bundle).json()["forecasts"]
        if len({row["outcome"] for row in forecast["risk"]}) == 3:
            return who, bundle
    raise AssertionError


@pytest.mark.parametrize("width", [1280, 400])
def test_a_dropped_bundle_is_shown(browser, client, simulated, tmp_path, width):
    who, bundle = healthy(client, simulated)
    file = tmp_path / "record.json"
    file.write_text(json.dumps(bundle))
    browser.asked.clear()
    browser.size(width)
    browser.go(f"{client.base_url}/")
    browser.choose("#file", file)
    browser.wait(DONE)
    seen = browser.value("""({
      status: document.getElementById("status").textContent, curves: document.querySelectorAll("path.curve").length,
      bands: document.querySelectorAll("path.band").length, dots: document.querySelectorAll("#timeline circle").length,
      reasons: document.querySelectorAll("#reasons li").length, who: document.getElementById("who").textContent,
      rows: document.querySelectorAll("#risk tbody tr").length, page: document.documentElement.scrollWidth,
      wide: [...document.querySelectorAll("svg:not(.key)")].every(s => s.getBoundingClientRect().right <= innerWidth),
      overlap: [...document.querySelectorAll("main > section")].some((s, i, all) => i &&
        s.getBoundingClientRect().top < all[i - 1].getBoundingClientRect().bottom - 1)})""")
    assert seen["status"] == ""
    assert seen["who"] == f"Patient {who}"
    assert seen["curves"] == seen["rows"] == 3
    assert seen["bands"] == 6
    assert seen["dots"] > 5
    assert seen["reasons"] >= 1
    assert seen["page"] <= width
    assert seen["wide"]
    assert not seen["overlap"]
    assert browser.said == []
    # it asked this service, and nobody else
    assert browser.asked
    assert all(url.startswith(str(client.base_url)) for url in browser.asked)


def test_hostile_text_stays_text(browser, client, simulated, tmp_path):
    bundle = copy.deepcopy(simulated.some(1)[0])
    text = json.dumps(bundle).replace(next(iter(simulated.bundles)), "x")
    bundle = json.loads(text)
    for entry in bundle["entry"]:
        for coding in (entry["resource"].get("code") or {}).get("coding", ()):
            coding["display"] = HOSTILE
    (tmp_path / "record.json").write_text(json.dumps(bundle))
    browser.size(1280)
    browser.go(f"{client.base_url}/")
    browser.choose("#file", tmp_path / "record.json")
    browser.wait(DONE)
    assert browser.value("document.title") == "ehrseq: the forecast of one record"
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert "<img src=x" in browser.value("document.getElementById('events').textContent")
    assert browser.said == []


def test_a_refusal_is_shown_in_words(browser, client, tmp_path):
    (tmp_path / "record.json").write_text('{"resourceType": "Bundle"}')
    browser.go(f"{client.base_url}/")
    browser.choose("#file", tmp_path / "record.json")
    browser.wait(DONE)
    assert "no readable Patient" in browser.value("document.getElementById('status').textContent")
    assert browser.value("document.getElementById('answer').hidden")


def test_of_several_patients_one_is_shown_and_that_is_said(browser, client, simulated, tmp_path):
    people = list(simulated.bundles.items())[:2]
    bundles = copy.deepcopy([bundle for _, bundle in people])
    for who, bundle in zip([w for w, _ in people], bundles, strict=True):
        rare = {"system": "http://x.org", "code": f"of-{who}"}
        bundle["entry"].append({"resource": {
            "resourceType": "Condition", "id": "x", "subject": {"reference": f"Patient/{who}"},
            "recordedDate": "2012-01-01", "code": {"coding": [rare]}}})  # fmt: skip
    (tmp_path / "records.json").write_text(json.dumps(bundles))
    browser.said.clear()  # of a page before this one
    browser.size(1280)
    browser.go(f"{client.base_url}/")
    browser.choose("#file", tmp_path / "records.json")
    browser.wait(DONE)
    shown = browser.value("document.getElementById('who').textContent").removeprefix("Patient ")
    assert browser.value("document.getElementById('alone').textContent").startswith("The file holds 2 patients.")
    unseen = browser.value("document.getElementById('unseen').textContent")
    answer = client.post("/forecast?include=timeline", json=bundles).json()
    dots = browser.value("document.querySelectorAll('#timeline circle').length")
    own = [e for e in answer["timeline"] if e["patient"] == shown and e["code"] != "MEDS_BIRTH"]
    assert dots == len(own) < len(answer["timeline"])
    assert [who for who, _ in people if f"of-{who}" in unseen] == [shown]
    assert browser.said == []


def test_an_older_answer_does_not_replace_a_newer_one(browser, client, simulated, tmp_path):
    (first, one), (second, other) = list(simulated.bundles.items())[:2]
    for name, bundle in (("one", one), ("other", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(bundle))
    browser.go(f"{client.base_url}/")
    # the first answer is kept back until the second one is shown
    browser.value("""(() => { const real = window.fetch; let n = 0;
      window.fetch = async (...a) => { const mine = n++, reply = await real(...a);
        if (!mine) await new Promise(r => { window.release = r; }); return reply; }; })()""")
    browser.choose("#file", tmp_path / "one.json")
    browser.wait("!!window.release")
    browser.choose("#file", tmp_path / "other.json")
    browser.wait(DONE)
    browser.value("window.release(), new Promise(r => setTimeout(r, 300))")
    assert browser.value("document.getElementById('who').textContent") == f"Patient {second}"
    assert first != second
