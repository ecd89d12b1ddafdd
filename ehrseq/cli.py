"""The command line: each verb calls one public function of the library."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ehrseq.errors import DataWarning, EhrseqError, SourceError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="FHIR exports to patient timelines to calibrated, competing-risk trajectory forecasts.",
)
say = typer.echo  # plain text: nothing is wrapped, so that tables stay tables and paths can be copied

Timelines = Annotated[Path, typer.Argument(help="A timelines folder made by `ehrseq ingest`, or a MEDS dataset.")]
TaskFile = Annotated[Path, typer.Option("--task", help="The task file (TOML).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Out = Annotated[Path, typer.Option("--out", help="The folder to write; an earlier one of ours is replaced.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Read by `main` from the arguments themselves, before anything can fail."""


@app.command("ingest")
def ingest_verb(
    sources: Annotated[
        list[Path], typer.Argument(help="FHIR files, folders, archives; - is standard input.", metavar="SOURCE...")
    ],
    out: Out,
    data_cut: Annotated[str | None, typer.Option(help="The date up to which the data are complete.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Fold the sources into the timelines there.")] = False,
    prefer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=SYSTEM,...", help="Which coding names an event: diagnosis=ICD10CM,SNOMED. Once for each kind."
        ),
    ] = None,
    concept_map: Annotated[
        Path | None, typer.Option(help="A table (CSV, Parquet) of further codes: columns code and target.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first record that cannot be read; no dataset is left.")
    ] = False,
    validate: Annotated[
        bool, typer.Option("--validate", help="First check every record against FHIR's models, and report.")
    ] = False,
    sample: Annotated[int | None, typer.Option(help="With --validate: check this many records alone.")] = None,
    version: Annotated[
        str | None, typer.Option(help="With --validate: R4, R4B, STU3 or R5. Default: what fits each record.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="How many processes read. Default: one a core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a FHIR export into a timelines folder. Interrupted, the same command goes on where it was."""
    from ehrseq.fhir.concept_map import coding_preference
    from ehrseq.timeline.ingest import ingest

    coding = coding_preference(prefer or (), concept_map)
    if validate:
        from ehrseq.fhir.validate import summary, validate_source

        if Path("-") in sources:
            raise SourceError("files or folders to validate", "standard input, which is read once", "pass its path")
        checked = summary(validate_source(sources, sample=sample, version=version))
        show(checked if not as_json else {})
    done = ingest(
        sources,
        out,
        data_cut=data_cut,
        coding=coding,
        update=update,
        strict=strict,
        workers=workers,
        progress=sys.stdout.isatty(),
    )
    facts = done.summary()
    if as_json:
        found = {"validation": checked} if validate else {}
        say(json.dumps({**found, "timelines": str(out), **facts}, default=str))
        return
    show(facts)
    if facts["records"].get("quarantined"):
        say(f"file number, line and reason of each quarantined record: {out / 'quarantine.parquet'}")
    say(f"timelines: {out}")


@app.command("inspect")
def inspect_verb(
    path: Annotated[
        Path, typer.Argument(help="A timelines, model, forecast or evaluation folder, or a task file.", metavar="PATH")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a folder or a task file holds."""
    from ehrseq.inspection import as_text, inspect

    facts = inspect(path)
    say(json.dumps(facts, default=str) if as_json else as_text(facts))


@app.command("cohort")
def cohort_verb(
    timelines: Timelines,
    task: TaskFile,
    seed: Annotated[int, typer.Option(help="The seed of the split, as in `ehrseq fit`.")] = 0,
) -> None:
    """Show who is at risk, who was left out and why, and how many events there are, before any fitting."""
    from ehrseq.task.cohort import build_cohort
    from ehrseq.task.definition import Task
    from ehrseq.timeline.store import as_timelines

    built = build_cohort(as_timelines(timelines), Task.from_toml(task), seed=seed)
    say(built.summary())


@app.command("fit")
def fit_verb(
    timelines: Timelines,
    out: Out,
    task: Annotated[Path | None, typer.Option("--task", help="The task file (TOML).")] = None,
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="Without a task: networks that learn to read histories, for --start.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The seed of everything random.")] = 0,
    model_kind: Annotated[str, typer.Option("--model", help="hybrid, transformer, boosted, cox or agesex.")] = "hybrid",
    size: Annotated[
        str | None,
        typer.Option(
            help="small, base or large: the latter two for GPUs and much data. Default: small, or as --start."
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="A model folder whose networks go on from where they are.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="How many processes, each with the timelines in memory. Default: one a core."),
    ] = None,
) -> None:
    """Fit a progression model and write its folder. Interrupted, the same command goes on from the last epoch."""
    from ehrseq.config import ModelConfig
    from ehrseq.estimator import load_model
    from ehrseq.score import fit_model

    if (task is None) != pretrain:
        raise typer.BadParameter("give either --task or --pretrain")
    if pretrain and model_kind not in ("hybrid", "transformer"):
        raise typer.BadParameter("--pretrain fits networks alone: leave out --model")
    kind = {"agesex": "age_sex"}.get(model_kind, model_kind)
    kind = "transformer" if task is None else kind
    origin = None if start is None else load_model(start)
    if origin is not None and size is None:
        config = replace(origin.config, seed=seed, model=kind)
    else:
        config = ModelConfig.of_size(size or "small", seed=seed, model=kind)
    with epochs(config.training.max_epochs * config.training.members if config.has_networks else 0) as report:
        model = fit_model(timelines, task, out, config=config, start=origin, report=report, workers=workers)
    splits = dict(model.trained_on_["split"].value_counts().iter_rows())
    say(f"fitted on {splits.get('train', 0):,} training and {splits.get('tuning', 0):,} tuning subjects")
    for name, count in model.fitted_.events.items():
        if not count:
            say(f"outcome '{name}' has no training event and is not forecast: check its codes")
    for code, reason in model.labs_withheld.items():
        say(f"lab {code} is not forecast: {reason.replace('_', ' ')}")
    say(f"model: {out}")


@app.command("recalibrate")
def recalibrate_verb(
    model: Annotated[Path, typer.Argument(help="A model folder.")], timelines: Timelines, out: Out
) -> None:
    """Set the level of a model's forecasts on another site's subjects, and write the new model's folder."""
    from ehrseq.score import recalibrate_model

    done = recalibrate_model(model, timelines, out)
    branch = done.fitted_.branches[0]
    say(f"{'outcome':<24}{'observed':>10}{'expected before':>17}{'after':>9}   (events; after: set by other subjects)")
    last = done.fitted_.recalibrated[-1]["round"]
    for row in (r for r in done.fitted_.recalibrated if (r["branch"], r["round"]) == (branch, last)):
        say(f"{row['outcome']:<24}{row['observed']:>10.1f}{row['expected_before']:>17.1f}{row['expected_after']:>9.1f}")
    say(f"model: {out}")


@contextmanager
def epochs(total: int) -> Iterator[Callable[[int, float], None]]:
    """Report epochs: a bar on a terminal, a line each elsewhere."""
    if not total or not sys.stdout.isatty():
        yield lambda epoch, loss: say(f"epoch {epoch}: tuning loss {loss:.4f}")
        return
    columns = (TextColumn("fitting"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns) as bar:
        row = bar.add_task("fit", total=total, note="first epoch")
        yield lambda epoch, loss: bar.update(row, advance=1, note=f"epoch {epoch}, tuning loss {loss:.4f}")
        bar.update(row, completed=total)  # early stopping leaves some out


@app.command("score")
def score_verb(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    source: Annotated[Path, typer.Argument(help="A timelines folder, or a FHIR export.")],
    out: Out,
    at: Annotated[
        str | None, typer.Option(help="Prediction time: a date (its end). Default: each end of follow-up.")
    ] = None,
    file_format: Annotated[str, typer.Option("--format", help="parquet, csv or fhir.")] = "parquet",
    branch: Annotated[
        str | None, typer.Option("--branch", help="Who answers: hybrid, transformer, boosted, cox, age_sex or null.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="How many processes. Default: one a core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Forecast everyone in an export or a timelines folder. Interrupted, the same command goes on where it was."""
    from ehrseq.forecast.drift import summary_lines
    from ehrseq.score import score_export

    done = score_export(
        source, model, out, at=at, branch=branch, file_format=file_format, workers=workers,
        progress=sys.stdout.isatty() and not as_json,
    )  # fmt: skip
    counts = done.counts
    if as_json:
        say(json.dumps({"forecasts": str(out), **counts, "drift": done.drift["warnings"]}))
        return
    say(f"scored: {counts['prediction_times']:,} prediction times of {counts['subjects']:,} subjects")
    if counts["skipped"]:
        reasons = sorted(counts["skipped"].items(), key=lambda item: (-item[1], item[0]))
        show({"not scored, for one outcome or for all (see `skipped`)": dict(reasons)})
    seen = counts["seen_in_training"]
    if seen:
        say(f"{seen:,} of these subjects were in the model's training data: do not judge it on them")
    for line in summary_lines(done.drift):
        say(line)
    say(f"forecasts: {out}")


@app.command("evaluate")
def evaluate_verb(
    judged: Annotated[
        Path,
        typer.Argument(
            help="A model folder, a forecast folder, or anyone's predictions (CSV or Parquet).",
            metavar="MODEL|FORECASTS|FILE",
        ),
    ],
    timelines: Timelines,
    out: Out,
    task: Annotated[
        Path | None, typer.Option("--task", help="The task file: for predictions in a file, or for other times.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Bootstrap replicates for the intervals.")] = 400,
    seed: Annotated[int, typer.Option(help="The seed of the bootstrap.")] = 0,
    against: Annotated[
        list[Path] | None, typer.Option(help="Forecast folders or files of predictions to compare with.")
    ] = None,
    by: Annotated[
        Path | None, typer.Option("--by", help="A table of patient and columns of groups, such as a site.")
    ] = None,
    trained_on: Annotated[
        Path | None, typer.Option(help="A table of the patients whom the predictions' model was trained on.")
    ] = None,
    audits: Annotated[
        bool, typer.Option("--audits", help="Audit a model too: a few lighter refits and checks, minutes to an hour.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge forecasts against what happened: a report with a page, its numbers, a model card and two checklists."""
    if audits:
        from ehrseq.audit import audit_export

        if against or trained_on is not None:
            raise typer.BadParameter("--against and --trained-on are for predictions, which cannot be audited")
        result = audit_export(
            judged, timelines, out, task=task, n_bootstrap=bootstrap, seed=seed, by=by,
            report=None if as_json else lambda name: say(f"audit: {name}"),
        )  # fmt: skip
    else:
        from ehrseq.score import evaluate_export

        result = evaluate_export(
            judged, timelines, out, task=task, n_bootstrap=bootstrap, seed=seed, against=against or (), by=by,
            trained_on=trained_on,
        )  # fmt: skip
    if as_json:
        from ehrseq.inspection import inspect

        say(json.dumps(inspect(out), default=str))
        return
    say(result.summary())
    show({name.replace("_", " "): fact for name, fact in result.facts.items()})
    say(f"evaluation: {out / 'report.html'}")


@app.command("serve")
def serve_verb(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    host: Annotated[
        str, typer.Option(help="The address to answer at; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    token_file: Annotated[Path | None, typer.Option(help="A file with the bearer token to ask for.")] = None,
    jwks: Annotated[Path | None, typer.Option(help="A JSON Web Key Set: who signs the tokens (ES384, RS384).")] = None,
    audience: Annotated[list[str] | None, typer.Option(help="With --jwks: what `aud` must be. Repeatable.")] = None,
    issuer: Annotated[list[str] | None, typer.Option(help="With --jwks: what `iss` must be. Repeatable.")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="A name to be asked under. Repeatable.")] = None,
    access_log: Annotated[Path | None, typer.Option(help="The file to log access to. Default: standard error.")] = None,
    rate: Annotated[float, typer.Option(min=0, help="Requests a minute from one address; 0: any number.")] = 600,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the arithmetic, of each worker.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that score, of 0.4 GB each. Default: one a core, at most 4.")
    ] = None,
) -> None:
    """Answer with forecasts over HTTP: FHIR, CDS Hooks, and a page to look at one record."""
    os.environ.setdefault("POLARS_MAX_THREADS", str(threads))  # read when polars is loaded, with what comes next
    try:
        from ehrseq.serve.credentials import Credentials
        from ehrseq.serve.run import serve
        from ehrseq.serve.settings import Settings, one_a_core
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "ehrseq":
            raise
        raise UserError(
            "the libraries of the service", f"no {error.name}",
            "install the extra `serve`: pip install '.[serve]' in the folder of the sources",
        ) from None  # fmt: skip
    settings = Settings(
        host=host, port=port, allowed_hosts=tuple(name.lower() for name in allowed_host or ()), access_log=access_log,
        credentials=Credentials.from_files(token_file, jwks, audience or (), issuer or ()), rate=rate, threads=threads,
        workers=workers or one_a_core(),
    )  # fmt: skip
    say(f"reading the model; then this page answers: http://{f'[{host}]' if ':' in host else host}:{port}/")
    serve(model, settings)


@app.command("simulate")
def simulate_verb(
    subjects: Annotated[int, typer.Option(help="How many subjects.")],
    out: Out,
    seed: Annotated[int, typer.Option(help="The seed.")] = 0,
) -> None:
    """Write a FHIR export of simulated people whose true risks are known."""
    from ehrseq.synthetic import write_simulation

    write_simulation(out, subjects, seed=seed, progress=sys.stdout.isatty())
    say(f"export: {out / 'export'}")
    say(f"task: {out / 'task.toml'}")
    say(f"truth: {out / 'truth.parquet'}")


@app.command("demo")
def demo_verb(
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("demo"),
    subjects: Annotated[int, typer.Option(help="How many simulated subjects.")] = 2000,
    seed: Annotated[int, typer.Option(help="The seed.")] = 0,
) -> None:
    """Run the whole job on simulated people: export, timelines, model, forecasts, evaluation, plot."""
    from ehrseq.demo import run_demo

    run_demo(out, subjects, seed=seed, say=say)


def show(facts: dict[str, Any], indent: int = 0) -> None:
    """Print nested facts, one a line."""
    for name, value in facts.items():
        lead = f"{' ' * indent}{name}:"
        if isinstance(value, dict) and set(value) - {""}:
            say(lead)
            show(value, indent + 2)
        elif isinstance(value, dict):  # counts by reason, where there is but one that needs no name
            say(f"{lead} {value.get('', 0):,}" if value else f"{lead} none")
        elif isinstance(value, list):
            say(f"{lead} {', '.join(map(str, value))}")
        else:
            say(f"{lead} {value:,}" if isinstance(value, int) else f"{lead} {value}")


def main() -> None:
    """Run a verb. Exit status: 0 done; 1 a user's error, in one line; 2 wrong usage; 130 interrupted."""
    debug = "--debug" in sys.argv[1:]
    usual = warnings.formatwarning
    # ours as a line, not as a line of code
    warnings.formatwarning = lambda message, kind, *where, **line: (
        f"ehrseq: {message}\n" if kind is DataWarning else usual(message, kind, *where, **line)
    )
    try:
        app([argument for argument in sys.argv[1:] if argument != "--debug"], prog_name="ehrseq")
    except Exception as error:
        if debug:
            raise
        typer.echo(f"ehrseq: {_one_line(error)}", err=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, EhrseqError):
        return " ".join(str(error).split())
    # the message of any other error may quote a record or a path: its type says enough by default
    what = type(error).__name__
    if isinstance(error, OSError):
        return f"expected to read the input and to write the output; found {what}; check permissions and free space"
    return f"expected to finish; found an unexpected {what}; run again with --debug and report it"


if __name__ == "__main__":
    main()
