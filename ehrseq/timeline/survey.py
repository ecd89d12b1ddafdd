"""What the records of one chunk need to know of the others: settled once for a whole source, from small columns.

Duplicates and deletions, merged patients, which patients there are, the times of encounters, the codes of
medications. Nothing here grows with the events; per encounter it takes about 40 bytes, per patient 8,
beside what the patients' records say, which lies on disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrseq.fhir.chunk import PATIENTS, Chunk, open_table
from ehrseq.fhir.clock import NO_TIME, moments
from ehrseq.fhir.codes import split_codes
from ehrseq.fhir.columns import series, take
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.references import (
    DATED_BY_OTHERS,
    UNKNOWN,
    Resolver,
    medication_codes,
    subject_number,
    wanted_identifier,
)
from ehrseq.frames import at_once, places
from ehrseq.timeline.duplicates import SEED, Dropped, settle_duplicates
from ehrseq.timeline.follow_up import before_life
from ehrseq.timeline.medications import MedicationIndex
from ehrseq.timeline.meds import SHARDS, shard_of
from ehrseq.timeline.schema import BIRTH_CODE, DEATH_CODE

Ints = npt.NDArray[Any]
OPEN = int(np.iinfo(np.int64).max)  # the end of an encounter that has none
DAY = 86_400_000_000
PLACEHOLDER = -25_201 * DAY  # 1901-01-02: an earlier date of issue is what systems write where they have none
SPAN = ("start", "known", "end", "precision", "offset")


@dataclass
class Survey:
    """What is known of the whole source; arrays are indexed as said beside them."""

    files: list[str]
    file_numbers: list[list[int]]  # of each chunk: its files' numbers in `files`
    lines_before: list[int]  # of each chunk: lines of its file in earlier pieces
    codes: list[str | None]
    code_numbers: list[Ints]  # of each chunk: its codes' numbers in `codes`
    dropped: list[tuple[Ints, Ints]]  # of each chunk: records settled here, and why
    resolved: list[dict[int, str]]  # of each chunk: targets of references that it could not resolve
    subjects: npt.NDArray[np.int64]  # every patient there is, sorted
    patients: pl.DataFrame | Path  # what their records say (or the file that holds it), by shard
    patient_bounds: list[int]  # where each shard starts in it, and the end
    merged: npt.NDArray[np.int64]  # patients that another replaced, sorted
    merged_into: npt.NDArray[np.int64]
    encounters: npt.NDArray[np.uint64]  # hashes of `Encounter/id`, sorted
    spans: dict[str, Ints]  # of each encounter: start, known, end, precision, offset
    medications: MedicationIndex
    periods: pl.DataFrame  # subject_id, start, end (microseconds) of the observation periods in the data
    data_cut: int = NO_TIME
    counts: list[tuple[int, str, int, int]] = field(default_factory=list)

    @cached_property
    def split_codes(self) -> tuple[pl.Series, pl.Series]:
        """By number: the code, and the list of other codes of the same concept."""
        return split_codes(self.codes)

    @cached_property
    def code_order(self) -> Ints:
        """By number: the place of the code among all in their order (0 for none)."""
        codes = self.split_codes[0].to_list()
        place = {code: n for n, code in enumerate(sorted({code for code in codes if code is not None}), 1)}
        # as narrow as can be: short numbers are sorted much faster
        return np.array([place.get(code, 0) for code in codes], np.min_scalar_type(len(place)))

    @cached_property
    def life_codes(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """By number: whether the code is of birth or death, whether of death."""
        death = np.array([(code or "").startswith(DEATH_CODE) for code in self.codes])
        return death | np.array([(code or "").startswith(BIRTH_CODE) for code in self.codes]), death

    def find_subject(self, subject: Ints) -> Ints:
        """Of each subject id: the one that replaced it, else itself."""
        if not len(self.merged):
            return subject
        at = np.minimum(np.searchsorted(self.merged, subject), len(self.merged) - 1)
        return np.where(self.merged[at] == subject, self.merged_into[at], subject)

    def is_known(self, subject: Ints) -> npt.NDArray[np.bool_]:
        """Whether there is a Patient record for each subject id."""
        if not len(self.subjects):
            return np.zeros(len(subject), bool)
        at = np.minimum(np.searchsorted(self.subjects, subject), len(self.subjects) - 1)
        known: npt.NDArray[np.bool_] = self.subjects[at] == subject
        return known

    def find_encounter(self, keys: npt.NDArray[np.uint64]) -> Ints:
        """Of each hash of an `Encounter/id`: the encounter's number, -1 where there is none."""
        if not len(self.encounters):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.encounters, keys), len(self.encounters) - 1)
        return np.where(self.encounters[at] == keys, at, -1)

    def patients_of(self, first: int, last: int) -> pl.DataFrame:
        """The patients of some shards, one row each, sorted by subject."""
        table = open_table(self.patients) if isinstance(self.patients, Path) else self.patients
        wanted = table[self.patient_bounds[first] : self.patient_bounds[last]]
        return wanted[places(np.argsort(wanted["subject_id"].to_numpy(), kind="stable"))]

    def save(self, folder: Path) -> None:
        """Write everything to a folder, for other processes: what grows with the source as files of their own."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in _LONG:
            np.save(folder / f"{name}.npy", getattr(self, name))
        for name in SPAN:
            np.save(folder / f"span_{name}.npy", self.spans[name])
        arrays: dict[str, Any] = {f"code_numbers_{i}": a for i, a in enumerate(self.code_numbers)}
        for i, (rows, why) in enumerate(self.dropped):
            arrays |= {f"dropped_{i}": rows, f"why_{i}": why}
        arrays |= {f"period_{name}": self.periods[name].to_numpy() for name in self.periods.columns}
        np.savez(folder / "short.npz", **arrays)
        table = open_table(self.patients) if isinstance(self.patients, Path) else self.patients
        table.write_ipc(folder / PATIENTS_FILE, compression="uncompressed")
        self.medications.save(folder / MEDICATIONS_FILE)
        plain = (
            "files", "file_numbers", "lines_before", "codes", "resolved", "data_cut", "patient_bounds",
        )  # fmt: skip
        (folder / "plain.json").write_text(json.dumps({name: getattr(self, name) for name in plain}))

    @classmethod
    def load(cls, folder: Path) -> Survey:
        """What `save` wrote; the long columns stay on disk until they are looked at."""
        facts = json.loads((folder / "plain.json").read_text())
        facts["resolved"] = [{int(n): target for n, target in r.items()} for r in facts["resolved"]]
        size = len(facts["file_numbers"])

        def long(name: str) -> Any:
            # a plain array: the class of mapped ones costs with every look-up
            return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)

        with np.load(folder / "short.npz", allow_pickle=False) as arrays:
            return cls(
                code_numbers=[arrays[f"code_numbers_{i}"] for i in range(size)],
                dropped=[(arrays[f"dropped_{i}"], arrays[f"why_{i}"]) for i in range(size)],
                spans={name: long(f"span_{name}") for name in SPAN},
                periods=pl.DataFrame({name: arrays[f"period_{name}"] for name in ("subject_id", "start", "end")}),
                patients=folder / PATIENTS_FILE,
                medications=MedicationIndex.load(folder / MEDICATIONS_FILE),
                **{name: long(name) for name in _LONG},
                **facts,
            )


PATIENTS_FILE, MEDICATIONS_FILE = "patients.arrow", "medications.arrow"
_LONG = ("subjects", "merged", "merged_into", "encounters")


def survey(chunks: Sequence[Chunk], data_cut: int = NO_TIME) -> Survey:
    """Look through all chunks of a source. The result does not depend on how the source was cut into chunks."""
    files, file_numbers = _number_files(chunks)
    dropped = settle_duplicates(chunks, file_numbers)
    unresolved = [chunk.unresolved() for chunk in chunks]
    resolve = _resolver(chunks, dropped, unresolved)
    resolved = [_resolve_rest(references, resolve) for references in unresolved]
    merged = _merged(chunks, dropped, resolve)
    subjects = _subjects(chunks, dropped, merged)
    codes, code_numbers, medications = _codes(chunks, dropped, resolve)
    encounters, spans = _encounters(chunks, dropped, data_cut)
    patients, patient_bounds = _patients(chunks, dropped)
    periods = _periods(chunks, dropped, resolved, merged, patients)
    old = np.array(sorted(merged), np.int64)
    lines_before = _lines_before(chunks)
    for chunk in chunks:
        chunk.release()
    return Survey(
        files=files,
        file_numbers=file_numbers,
        lines_before=lines_before,
        codes=codes,
        code_numbers=code_numbers,
        dropped=[(np.array(sorted(d), np.int64), np.array([d[row] for row in sorted(d)], np.uint8)) for d in dropped],
        resolved=resolved,
        subjects=subjects,
        patients=patients,
        patient_bounds=patient_bounds,
        merged=old,
        merged_into=np.array([merged[s] for s in old.tolist()], np.int64),
        encounters=encounters,
        spans=spans,
        medications=medications,
        periods=periods,
        data_cut=data_cut,
    )


def _number_files(chunks: Sequence[Chunk]) -> tuple[list[str], list[list[int]]]:
    """All files in the order of their paths, and their numbers by chunk. A file read again later counts anew."""
    keys = sorted({(path, chunk.generation) for chunk in chunks for path in chunk.files})
    numbers = {key: number for number, key in enumerate(keys)}
    return [path for path, _ in keys], [[numbers[path, c.generation] for path in c.files] for c in chunks]


def _lines_before(chunks: Sequence[Chunk]) -> list[int]:
    """Of each chunk: how many lines its file has in the pieces before."""
    pieces: dict[tuple[str, int], dict[int, int]] = {}
    for chunk in chunks:
        of_file = pieces.setdefault((chunk.files[0], chunk.generation), {})
        of_file[chunk.piece] = of_file.get(chunk.piece, 0) + chunk.lines
    return [
        sum(lines for piece, lines in pieces[chunk.files[0], chunk.generation].items() if piece < chunk.piece)
        for chunk in chunks
    ]


def _kept(chunk: Chunk, name: str, dropped: dict[int, int]) -> pl.DataFrame:
    """A table of a chunk without what dropped records said."""
    table = chunk.tables[name]
    if not dropped or not table.height:
        return table
    rows = np.fromiter(dropped, np.int64, len(dropped))
    return table.filter(pl.Series(~np.isin(table["record"].to_numpy(), rows)))


def _resolver(chunks: Sequence[Chunk], dropped: Dropped, unresolved: list[dict[int, str]]) -> Resolver:
    """Knows what the references stand for that no chunk could resolve by itself."""
    wanted = {written for references in unresolved for written in references.values()}
    for chunk in chunks:
        wanted.update(chunk.tables["links"]["other"].to_list())
        for references in chunk.tables["medications"]["ingredient_references"].to_list():
            wanted.update(() if references is None else references)
    asks = any(wanted_identifier(w) is not None for w in wanted)
    named = pl.Series([w for w in wanted if w.startswith("urn:")], dtype=pl.String)
    names: dict[str, str] = {}
    identifiers: list[tuple[str, str]] = []
    for chunk, gone in zip(chunks, dropped, strict=True):
        if asks:
            identifiers += _kept(chunk, "identifiers", gone).select("identifier", "target").iter_rows()
        if not len(named):
            continue
        table = chunk.tables["names"]
        for name, target in table.filter(pl.col("name").is_in(named.implode())).iter_rows():
            names[name] = target if names.setdefault(name, target) == target else ""
        # a bundle entry is mostly called by its resource's id, which is not written down twice
        _name_by_id(chunk, pl.DataFrame({"name": named, "id": named.str.extract(r"([^:]*)$")}), names)
    return Resolver(names, identifiers)


def _name_by_id(chunk: Chunk, wanted: pl.DataFrame, names: dict[str, str]) -> None:
    from ehrseq.fhir.rows import TYPES

    columns = chunk.columns
    records = pl.DataFrame({"id": series([columns.ids]), "kind": columns.records["kind"].copy()})
    found = records.join(wanted, on="id").unique()
    for name_id, kind, name in found.iter_rows():
        target = f"{TYPES[kind]}/{name_id}"
        names[name] = target if names.setdefault(name, target) == target else ""


def _resolve_rest(unresolved: dict[int, str], resolve: Resolver) -> dict[int, str]:
    """Targets of the references that a chunk could not resolve, by their number."""
    found = {number: resolve(written) for number, written in unresolved.items()}
    return {number: target for number, target in found.items() if target is not None}


def _merged(chunks: Sequence[Chunk], dropped: Dropped, resolve: Resolver) -> dict[int, int]:
    """Of each patient that was merged into another: both subject ids, chains followed to their end."""
    into: dict[str, set[str]] = {}
    for chunk, gone in zip(chunks, dropped, strict=True):
        for _, kind, own, other in _kept(chunk, "links", gone).rows():
            target = resolve(other)
            if target is None or not target.startswith("Patient/") or target == own:
                continue
            old, new = (target, own) if kind == "replaces" else (own, target)
            into.setdefault(old, set()).add(new)
    # one that says it was merged into two is not merged: which record is whose cannot be told
    step = {old: next(iter(new)) for old, new in into.items() if len(new) == 1}
    present = {
        f"Patient/{name}"
        for chunk, gone in zip(chunks, dropped, strict=True)
        for name in (_kept(chunk, "patients", gone)["patient"] if step else ())
    }
    merged = {}
    for old in step:
        seen, end = {old}, step[old]
        while end in step and end not in seen:
            seen.add(end)
            end = step[end]
        if end not in seen and end in present:
            merged[subject_number(old)] = subject_number(end)
    return merged


def _subjects(chunks: Sequence[Chunk], dropped: Dropped, merged: dict[int, int]) -> npt.NDArray[np.int64]:
    """Every patient, sorted; the records of merged ones are dropped."""
    ids = []
    for chunk, gone in zip(chunks, dropped, strict=True):
        patients = _kept(chunk, "patients", gone)
        if merged:
            away = patients.filter(pl.col("subject_id").is_in(list(merged)))
            gone.update(dict.fromkeys(away["record"].to_list(), int(Reason.MERGED)))
            patients = patients.filter(~pl.col("subject_id").is_in(list(merged)))
        ids.append(patients["subject_id"].to_numpy())
    return np.unique(np.concatenate(ids)) if ids else np.array([], np.int64)


def _patients(chunks: Sequence[Chunk], dropped: Dropped) -> tuple[pl.DataFrame, list[int]]:
    """What the records of all patients say, shard by shard, and where the shards start."""
    tables = [_kept(chunk, "patients", gone) for chunk, gone in zip(chunks, dropped, strict=True)]
    table = pl.concat(tables or [pl.DataFrame(schema=PATIENTS)])
    shard = shard_of(table["subject_id"])
    order = np.argsort(shard, kind="stable")
    return table[order], np.searchsorted(shard[order], np.arange(SHARDS + 1)).tolist()


def _codes(
    chunks: Sequence[Chunk], dropped: Dropped, resolve: Resolver
) -> tuple[list[str | None], list[Ints], MedicationIndex]:
    """All codes, in order; their numbers by chunk; and those of each Medication."""
    listed = [chunk.tables["codes"]["code"] for chunk in chunks]
    written = pl.concat(listed) if listed else pl.Series([], dtype=pl.String)
    names = written.unique().drop_nulls().sort()
    order = pl.Enum(names)

    def numbers(codes: pl.Series) -> Ints:
        return (codes.cast(order).to_physical().cast(pl.Int32) + 1).fill_null(0).to_numpy()

    bounds = np.cumsum([len(each) for each in listed])[:-1]
    medications = _medications(chunks, dropped, resolve, numbers)
    return [None, *names], np.split(numbers(written), bounds), medications


def _medications(
    chunks: Sequence[Chunk], dropped: Dropped, resolve: Resolver, numbers: Callable[[pl.Series], Ints]
) -> MedicationIndex:
    """The codes of each Medication, as `numbers` has them: its own, else those of what it is made of."""
    kept = [_kept(chunk, "medications", gone) for chunk, gone in zip(chunks, dropped, strict=True)]
    tables = [table for table in kept if table.height]
    if not tables:
        return MedicationIndex.of(pl.Series([], dtype=pl.String), np.zeros(0, np.int32), {})
    # records without an id are called alike: the last of them counts
    table = pl.concat(tables).unique("target", keep="last", maintain_order=True)
    target, code = table["target"], table["code"]
    bare = code.is_null().arg_true()
    made_of: dict[int, list[int]] = {}
    if len(bare):
        ingredients = table[bare].select("target", "ingredient_codes", "ingredient_references").rows()
        coded = dict(zip(target.to_list(), code.to_list(), strict=True))
        found = medication_codes(coded, {t: (codes, references) for t, codes, references in ingredients}, resolve)
        flat = numbers(pl.Series([c for codes in found.values() for c in codes], dtype=pl.String)).tolist()
        ends = np.cumsum([len(codes) for codes in found.values()]).tolist()
        made_of = {at: flat[low:high] for at, low, high in zip(bare.to_list(), [0, *ends[:-1]], ends, strict=True)}
    return MedicationIndex.of(target, numbers(code), made_of)


def _encounters(
    chunks: Sequence[Chunk], dropped: Dropped, data_cut: int
) -> tuple[npt.NDArray[np.uint64], dict[str, Ints]]:
    """Every encounter and when it was; one that has not ended ends at the data cut, and without one never (`OPEN`).

    What other records say of later times is no end: it would let one patient's record move what is known of another.
    """
    parts = [_spans(chunk, gone, data_cut) for chunk, gone in zip(chunks, dropped, strict=True)]
    e = {name: np.concatenate([part[name] for part in parts]) for name in ("target", "there", *SPAN)}
    # of several, as of the reports that give one result, the first that was there counts; most are there once
    order = np.argsort(e["target"])
    target = e["target"][order]
    again = np.concatenate([[False], target[1:] == target[:-1]])
    if again.any():
        order = np.lexsort([*(e[name] for name in reversed(SPAN)), e["there"], e["target"]])[~again]
    return e["target"][order], {name: e[name][order] for name in SPAN}


def _spans(chunk: Chunk, gone: dict[int, int], data_cut: int) -> dict[str, Ints]:
    """When the encounters and reports of a chunk were, by the hash of their names, and when they were `there`."""
    table = _kept(chunk, "encounters", gone)
    target, is_report = (column.to_numpy() for column in at_once(table.lazy().select(_TARGET, _IS_REPORT)))
    e = {name: table[name].to_numpy() for name in table.columns if name != "target"}
    no_start = e["start"] == NO_TIME
    # a report does not go on: of one issued at no time nobody can tell when it was there, and it dates nothing
    untold = is_report & (e["end"] == NO_TIME)
    begun = np.where(untold, NO_TIME, np.where(no_start, e["end_start"], e["start"]))
    last = OPEN if data_cut == NO_TIME else data_cut
    until = np.where(no_start, e["end"], e["start_end"])
    known = np.where(e["end"] == NO_TIME, np.maximum(until, last), e["end"])
    # what a report is about is known by then, however early it says that it was issued
    there = np.maximum(e["start"], np.where((e["end"] == NO_TIME) | (known < e["start"]), e["start_end"], e["end"]))
    never = is_report & (known < PLACEHOLDER)
    spans = {
        "target": target,
        # one issued in 1900 dates nothing where another does
        "there": np.where(untold, OPEN, np.where(never, OPEN - 1, there)),
        "start": begun,
        # (of reports as written: linking looks whether it can be)
        "known": np.where(begun == NO_TIME, NO_TIME, np.where(is_report | (known >= begun), known, until)),
        "end": until,
        "precision": np.where(no_start, e["end_precision"], e["start_precision"]),
        "offset": np.where(no_start, e["end_offset"], e["start_offset"]),
    }
    chunk.release()
    return spans


_TARGET, _IS_REPORT = pl.col("target").hash(SEED), pl.col("target").str.contains(DATED_BY_OTHERS).alias("is_report")


def _periods(
    chunks: Sequence[Chunk],
    dropped: Dropped,
    resolved: list[dict[int, str]],
    merged: dict[int, int],
    patients: pl.DataFrame,
) -> pl.DataFrame:
    """`subject_id`, `start`, `end` of the observation periods in the data.

    Records with a period of nobody, without readable dates or that ended before birth are dropped for that reason.
    """
    parts, birth_of = [], patients.select("subject_id", "birth").unique("subject_id", keep="last")
    for chunk, gone, targets in zip(chunks, dropped, resolved, strict=True):
        table = _kept(chunk, "periods", gone)
        if not table.height:
            continue
        columns, numbers = chunk.columns, table["reference"].to_numpy()
        subject = columns.references["subject_id"][numbers].tolist()
        target: list[str | None] = take(columns.names, numbers).to_pylist()
        for at, reference in enumerate(numbers.tolist()):
            if columns.references["points_at"][reference] == UNKNOWN:
                target[at] = None
            if reference in targets:
                found = target[at] = targets[reference]
                subject[at] = subject_number(found) if found.startswith("Patient/") else 0
        who = pl.Series([merged.get(s, s) for s in subject], dtype=pl.Int64).to_numpy()
        other = np.array([t is not None and not t.startswith("Patient/") for t in target], bool)
        nobody = np.where(other, Reason.NOT_A_PATIENT, Reason.UNKNOWN_SUBJECT)
        own = table.select("start", "end").with_columns(subject_id=who)
        born = own.join(birth_of, on="subject_id", how="left", maintain_order="left")["birth"]
        known = {"birth_time": born.fill_null(NO_TIME), "start": own["start"], "end": own["end"]}
        times = pl.DataFrame([moments(column.to_numpy()).alias(name) for name, column in known.items()])
        early = times.select(before_life()).to_series()
        fault = np.select([born.is_null(), early], [nobody, Reason.BEFORE_BIRTH], table["fault"].to_numpy())
        gone.update(zip(table["record"].filter(pl.Series(fault > 0)).to_list(), fault[fault > 0].tolist(), strict=True))
        parts.append(own.filter(pl.Series(fault == 0)))
    if not parts:
        return _NO_PERIODS
    return pl.concat(parts).select("subject_id", "start", "end").unique().sort(pl.all())


_NO_PERIODS = pl.DataFrame(schema={"subject_id": pl.Int64, "start": pl.Int64, "end": pl.Int64})
