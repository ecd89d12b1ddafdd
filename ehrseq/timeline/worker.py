"""One worker process of `ehrseq.timeline.pool`: a line of JSON in, lines of JSON out."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ehrseq.errors import TrainingError, UserError
from ehrseq.fhir.source import Progress

Do = Callable[[dict[str, Any], dict[str, Any], Progress | None], Any]
REPORT_BYTES = 1 << 22
PARENT = "EHRSEQ_PARENT"  # of the environment: the process that started this one


def do(job: dict[str, Any], loaded: dict[str, Any], advance: Progress | None) -> Any:
    """Do one job; `loaded` keeps what the next one needs again."""
    from ehrseq.fhir.reader import uncollected
    from ehrseq.timeline import ingest, shards

    with uncollected():
        return ingest.read_task(job, advance) if job["do"] == "read" else shards.write_shards(job, loaded)


def end_with(parent: int) -> None:
    """End this process once the one that started it is gone, whatever it is doing."""
    started = int(os.environ.get(PARENT, parent))  # it may be gone before its child asks for the first time
    while os.getppid() == parent and _lives(started):
        time.sleep(0.2)
    os._exit(1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks only
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def main(do: Do = do) -> None:
    """Answer jobs until there are no more, each by `do`."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    loaded: dict[str, Any] = {}
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever prints does not answer
    for line in sys.stdin:
        unsaid = 0

        def advance(size: Any) -> None:
            nonlocal unsaid
            if not isinstance(size, int):  # nothing to add up
                say({"advance": size})
                return
            unsaid += size
            if unsaid >= REPORT_BYTES:
                say({"advance": unsaid})
                unsaid = 0

        def say(answer: dict[str, Any]) -> None:
            try:
                answers.write(json.dumps(answer) + "\n")
                answers.flush()
            except BrokenPipeError:  # nobody listens any more
                os._exit(1)

        try:
            result = do(json.loads(line), loaded, advance)
        except UserError as error:
            known = next(kind for kind in type(error).__mro__ if kind.__module__ == UserError.__module__)
            say({"refused": [known.__name__, *error.told]})  # messages hold nothing of a record's content
            continue
        except TrainingError as error:
            say({"failed": str(error)})
            continue
        except Exception as error:
            # its text could hold what stands in a record
            say({"error": f"one that stopped with {type(error).__name__}"})
            continue
        if unsaid:
            say({"advance": unsaid})
        say({"done": result})


if __name__ == "__main__":
    main()
