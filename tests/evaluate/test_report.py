from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import polars as pl
import pytest

from ehrseq.evaluate import evaluate_forecasts
from ehrseq.evaluate.report.source_attributes import ATTRIBUTES
from ehrseq.evaluate.report.tripod import ITEMS
from ehrseq.evaluate.report.write import content, page, write_report
from ehrseq.evaluate.study import evaluate_study
from tests.evaluate.test_study import forecasts, labels_of
from tests.toy import TASK, append, cohort, day

HOSTILE = '<script>alert("$x^2$")</script>'
# of a group, of its column, of a code and of a unit
NAMES = ("<b>a</b>", "<u>ward</u>", "http://e.org/<img src=x onerror=y>//1", "<i>unit</i>")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


FAITHFULNESS = {
    "gates": {"deletion": "passed", "insertion": "failed", "randomised weights": "passed"},
    "curves": {f"illness {HOSTILE}": {
        "deletion": {"mean": 0.01234, "lower": 0.00123, "upper": 0.02345, "people": 187},
        "insertion": {"mean": 0.00321, "lower": -0.00456, "upper": 0.00789, "people": 187},
    }},
    "randomised_weights": {"mean": 0.0567, "lower": -0.0678, "upper": 0.1789, "people": 186},
    "horizon": "3y", "forecasts": 374, "seed": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def evaluation():
    timelines = cohort(400, seed=3)
    risks = {HOSTILE: forecasts(timelines), "other": forecasts(timelines, seed=1)}
    groups = timelines.subjects.select("subject_id", pl.Series(NAMES[1], [NAMES[0], "b"] * 200))
    strange = [(i, day(5), NAMES[2], 1.0, day(5)) for i in timelines.subjects["subject_id"][:60]]
    units = pl.DataFrame({"code": ["LOINC//a"], "unit_recorded": [NAMES[3]], "factor": [None], "events": [900]},
                         schema_overrides={"factor": pl.Float64})  # fmt: skip
    timelines = replace(append(timelines, strange), units=units)
    found = evaluate_study(risks, labels_of(timelines), timelines, TASK, n_bootstrap=120, by=groups)
    study = {
        **found.study,
        "audits": [
            {
                "name": f"audit {HOSTILE}",
                "statement": HOSTILE,
                "seed": 1,
                "passed": False,
                "rows": [
                    dict.fromkeys(
                        (
                            f"{c}{e}"
                            for c in ("auc", "observed_expected", "brier", "gap")
                            for e in ("", "_lower", "_upper")
                        ),
                        0.4321,
                    )
                    | {"outcome": "illness", "landmark": HOSTILE, "model": HOSTILE, "subjects": 77, "events": 6}
                ],
            },
            {"name": "leaked split", "statement": "Refused.", "seed": None, "passed": True, "rows": []},
        ],
    }
    return replace(found, study=study, facts={**found.facts, "faithfulness": FAITHFULNESS})


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "r"
    write_report(evaluation, out)
    return out


class Reader(HTMLParser):
    """Tags, attributes, ids and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.ids, self.text, self.silent = [], [], [], [], 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        self.silent += tag in ("style", "svg")

    def handle_endtag(self, tag):
        self.silent -= tag in ("style", "svg")

    def handle_data(self, data):
        if not self.silent:
            self.text.append(data)


@pytest.fixture(scope="module")
def read(folder):
    reader = Reader()
    reader.feed((folder / "report.html").read_text())
    return reader


def test_the_page_loads_nothing_and_runs_nothing(read):
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(read.tags)
    for tag, name, value in read.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "xlink:href", "action"):
            assert value.startswith("#"), (tag, name)
    assert any("default-src 'none'" in (value or "") for *_, value in read.attributes)


def test_untrusted_text_is_text(folder, read):
    source = (folder / "report.html").read_text()
    card = (folder / "model_card.md").read_text()
    for mark in ("<script", *(re.match("[^<]*(<[a-z]+)", name)[1] for name in NAMES)):
        assert not re.search(re.escape(mark) + "[ >]", source), mark
        assert mark not in card, mark
    for name in (HOSTILE, *NAMES):
        assert name in "".join(read.text), name


def test_outcomes_and_landmarks_are_text_too():
    labels = labels_of(cohort(200, seed=1)).with_columns(landmark=pl.lit(HOSTILE), outcome=HOSTILE + pl.col("outcome"))
    risk = forecasts(cohort(200, seed=1)).with_columns(outcome=HOSTILE + pl.col("outcome"))
    source = page(content(evaluate_forecasts(risk, labels, {"1y": 365.25, "3y": 1095.75}, n_bootstrap=0)))
    assert "<script" not in source
    assert source.count("&lt;script&gt;") > 10


def test_a_screen_reader_finds_its_way(read):
    assert ("html", "lang", "en") in read.attributes
    assert read.tags.count("h1") == read.tags.count("main") == 1
    assert len(read.ids) == len(set(read.ids))
    assert read.tags.count("table") == read.tags.count("caption") > 10
    assert read.tags.count("svg") == read.tags.count("figcaption") == 4
    scopes = [tag for tag, name, _ in read.attributes if (tag, name) == ("th", "scope")]
    assert len(scopes) == read.tags.count("th")
    anchors = {value[1:] for tag, name, value in read.attributes if (tag, name) == ("a", "href")}
    assert anchors <= set(read.ids)


def numbers(value):
    """Every number in JSON content, those inside texts too."""
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    if isinstance(value, str):
        return [float(n) for n in re.findall(r"\d+(?:\.\d+)?", value)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_number_of_the_page_is_in_the_json(folder, read):
    content = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    known = numbers(content)
    shown = {f"{v * scale / 365.25 ** year:.{digits}f}" for v in known for scale, digits, year in (
        (1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 3, 0), (1, 4, 0), (1, 5, 0), (100, 1, 0), (1, 1, 1))}  # fmt: skip
    shown |= {s.lstrip("-") for s in shown} | set(re.findall(r"\d+(?:\.\d+)?", json.dumps(content)))
    # written in the page's own words: 95% intervals, 50 subjects, AUC's 0 and 1, 2.0
    shown |= {"95", "50", "0.001", "100", "1,000", "1", "0", "170.315"}
    said = " ".join(read.text).replace(",", "")
    missing = [n for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", said) if n not in shown and n != "1000"]
    tests_made = str(sum(t["p"] is not None for t in content["group_tests"]))
    assert [n for n in missing if n not in (tests_made, "31")] == []


def test_a_number_from_elsewhere_would_be_found(folder, read):
    """The control of the test above."""
    forged = Reader()
    forged.feed((folder / "report.html").read_text().replace("</main>", "<p>77.7123 people</p></main>"))
    read.text, kept = forged.text, read.text
    try:
        with pytest.raises(AssertionError, match=r"77\.7123"):
            test_every_number_of_the_page_is_in_the_json(folder, read)
    finally:
        read.text = kept


class Tables(HTMLParser):
    """Every table of a page as (caption, rows of cells)."""

    def __init__(self, source):
        super().__init__()
        self.tables, self.cell = [], None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append(["", []])
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th", "caption"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag == "caption":
            self.tables[-1][0] = self.cell
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append(self.cell)

    def handle_data(self, data):
        self.cell = None if self.cell is None else self.cell + data


def test_figures_stand_where_they_belong(folder):
    """Each row of the main tables is that of its model, outcome and horizon in the JSON."""
    content = json.loads((folder / "report.json").read_text())
    found = [rows for caption, (_, *rows) in Tables((folder / "report.html").read_text()).tables
             if caption == "All horizons"]  # fmt: skip
    assert sum(map(len, found)) == len(content["table"]) == 8
    expected = iter(content["table"])
    for table in found:
        for model, horizon, *cells in table:
            row = next(expected)
            assert (model, horizon) == (row["model"], row["horizon"])
            names = ("observed", "mean_predicted", "observed_expected", "auc", "brier", "scaled_brier", "slope", "ici")
            for name, text, digits in zip(names, cells[:8], (4, 4, 2, 3, 4, 3, 2, 4), strict=True):
                values = [row[name], row[f"{name}_lower"], row[f"{name}_upper"]]
                assert text == "{} ({} to {})".format(*(f"{v:.{digits}f}" for v in values)), name


def test_faithfulness_is_told_as_measured_or_as_not_measured(evaluation, folder):
    text = (folder / "report.html").read_text()
    tables = dict(Tables(text).tables)
    assert tables["Faithfulness gates"][1:] == [list(gate) for gate in FAITHFULNESS["gates"].items()]
    assert [row[2:] for row in tables["Faithfulness figures"][1:]] == [
        ["0.01234 (0.00123 to 0.02345)", "187"], ["0.00321 (-0.00456 to 0.00789)", "187"],
        ["0.057 (-0.068 to 0.179)", "186"],
    ]  # fmt: skip
    below = "Below the faithfulness gate (insertion): do not rely on explanations"
    assert text.count(below) >= 2  # in its section and in short
    assert below.lower() in (folder / "model_card.md").read_text().lower()
    passed = {**FAITHFULNESS, "gates": dict.fromkeys(FAITHFULNESS["gates"], "passed")}
    text = page(content(replace(evaluation, facts={"faithfulness": passed})))
    assert "gate was passed (deletion, insertion, randomised weights)" in text
    assert "Below the" not in text
    text = page(content(replace(evaluation, facts={})))
    assert "Not measured. For a model of ehrseq: model.check_faithfulness(timelines)" in text
    assert "Faithfulness gates" not in text
    assert "Below the" not in text
    nobody = {"mean": None, "lower": None, "upper": None, "people": 0}
    empty = {**FAITHFULNESS, "curves": {}, "randomised_weights": nobody, "horizon": None, "forecasts": 0}
    assert "Faithfulness gates" in page(content(replace(evaluation, facts={"faithfulness": empty})))


def test_the_json_is_that_of_the_page(evaluation, folder):
    report = json.loads((folder / "report.json").read_text())
    assert page(report) == page(content(evaluation)) == (folder / "report.html").read_text()


def test_every_item_has_a_value_or_a_reason(folder):
    attributes = json.loads((folder / "hti1_source_attributes.json").read_text())
    assert len(attributes["attributes"]) == len(ATTRIBUTES) == 31
    for row in attributes["attributes"]:
        assert (row["value"] == "not available") == bool(row.get("reason"))
    # the table says nothing of who made it, for whom, or where it was trained: neither does the list
    unknown = {a["paragraph"] for a in attributes["attributes"] if a["value"] == "not available"}
    assert {"1.i", "1.ii", "2.i", "4.i", "6.i", "7.i", "7.iii", "8.ii"} <= unknown
    items = json.loads((folder / "tripod_ai.json").read_text())
    assert len(items) == len({i["item"] for i in items}) == len(ITEMS) == 52
    for row in items:
        assert bool(row["value"]) != bool(row["reason"])


def test_checklists_claim_nothing_of_predictions_from_elsewhere(evaluation):
    def told(**provenance):
        study = {**evaluation.study, "provenance": provenance}
        report = content(replace(evaluation, study=study))
        attributes = {a["paragraph"]: a["value"] for a in report["source_attributes"]["attributes"]}
        return {i["item"]: i["value"] for i in report["tripod_ai"]}, attributes

    items, _ = told()
    assert items["12a"] is items["16"] is None
    assert "not told by a table" in items["7"]
    items, attributes = told(model_seed=0, trained_on="9 training subjects", data_source="internal")
    assert "known by the prediction time" in items["7"]
    assert "held out" in items["16"]
    assert attributes["4.i"] == "not available"  # a number of subjects is no criterion


def test_an_evaluation_of_tables_alone_says_what_it_lacks(evaluation, tmp_path):
    bare = replace(evaluation, study={}, groups=evaluation.groups.clear(), group_tests=evaluation.group_tests.clear())
    bare.save(tmp_path / "r")
    text = (tmp_path / "r" / "report.html").read_text()
    assert text.count("Not available") >= 4
    assert "Not run: audits" in text
    nothing = replace(
        bare, **{n: getattr(bare, n).clear() for n in ("table", "differences", "overall", "calibration", "curves",
                                                       "decisions", "sensitivity")}, main_horizon=None,
    )  # fmt: skip
    nothing.save_report(tmp_path / "page.html")
    assert "Nobody at risk could be judged" in (tmp_path / "page.html").read_text()


def test_equal_evaluations_give_equal_bytes(evaluation, folder, tmp_path):
    write_report(evaluation, tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to look at the page")
@pytest.mark.parametrize("width", [1280, 400])
def test_seen_in_a_browser(folder, tmp_path, width):
    source = (folder / "report.html").read_text()
    # a script of the test's own measures what the browser made of the page
    probe = """<script>addEventListener("load", () => {
      const svgs = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
      document.title = JSON.stringify({page: document.documentElement.scrollWidth, window: innerWidth,
        svgs: svgs.map(r => [Math.round(r.width), Math.round(r.height)]), heading: document.querySelector("h1").
        getBoundingClientRect().width, overlap: [...document.querySelectorAll("section")].some((s, i, all) => i &&
        s.getBoundingClientRect().top < all[i - 1].getBoundingClientRect().bottom - 1)});
    });</script>"""
    probed = re.sub(r"<meta http-equiv=[^>]*>", "", source).replace("</head>", probe + "</head>")
    (tmp_path / "page.html").write_text(probed)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
               f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},4000"]  # fmt: skip
    # a headless window is never narrower than 500 pixels: a frame is
    frame = f'<iframe id="f" src="page.html" style="width:{width}px;height:3900px;border:0"></iframe>'
    reader = '<script>addEventListener("load", () => setTimeout(() => { document.body.dataset.seen = \
document.getElementById("f").contentDocument.title; }, 100));</script>'
    (tmp_path / "frame.html").write_text(f'<!DOCTYPE html><body style="margin:0">{frame}{reader}</body>')
    where = (tmp_path / "frame.html").as_uri()
    done = subprocess.run(
        [CHROMIUM, *options, "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom", where],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(found.group(1).replace("&quot;", '"'))
    assert seen["window"] == width
    assert seen["page"] <= width  # only tables scroll sideways
    assert len(seen["svgs"]) == 4
    assert all(250 < w <= width and 200 < h < 500 for w, h in seen["svgs"])
    assert not seen["overlap"]
    picture = tmp_path / "page.png"
    subprocess.run([CHROMIUM, *options, f"--screenshot={picture}", where], capture_output=True, timeout=120, check=True)
    import matplotlib.image

    pixels = matplotlib.image.imread(picture)[:, :width, :3]
    ink = (pixels.min(2) < 0.5).mean()
    assert 0.01 < ink < 0.3  # neither blank nor black
