"""One worker process of `ehrseq.serve.pool`: frames of requests in, frames of answers out.

A frame is the length of what follows, in eight bytes, and a msgpack document. First come a `Begin` and its answer, the
text of what is wrong with it or none. Then a number of requests, each an `Ask`, and as many answers, each a `Result`.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from functools import partial
from typing import IO, Any

import msgspec

from ehrseq.errors import ArtifactError, UserError
from ehrseq.frames import on_polars_thread
from ehrseq.serve.answer import Ask
from ehrseq.serve.scoring import score, warm
from ehrseq.timeline.worker import end_with

LENGTH = 8  # bytes
MOST = 1 << 30  # bytes of a frame: a longer one is no frame


class Begin(msgspec.Struct, frozen=True):
    """What a worker scores with."""

    folder: str
    folder_hash: str | None
    threads: int


def send(to: IO[bytes], item: Any) -> None:
    """Write one frame."""
    content = msgspec.msgpack.encode(item)
    to.write(len(content).to_bytes(LENGTH, "big"))
    to.write(content)


def receive(of: IO[bytes], kind: Any) -> Any:
    """Read one frame, of this type. Raises EOFError where there is no whole one."""
    length = of.read(LENGTH)
    size = int.from_bytes(length, "big")
    content = of.read(size) if len(length) == LENGTH and size <= MOST else b""
    if not content or len(content) < size:
        raise EOFError("no whole frame")
    return msgspec.msgpack.decode(content, type=kind)


def load(begin: Begin) -> Any:
    """The model, warm. Raises UserError where it is not the one that the service began with."""
    import torch

    from ehrseq.estimator import load_model

    torch.set_num_threads(begin.threads)
    model = load_model(begin.folder)
    if model.folder_hash_ != begin.folder_hash:
        raise ArtifactError("the model that the service began with", "another in its folder", "start the service again")
    on_polars_thread(partial(warm, model))  # where the answers come from
    # what stays until the end is not gone over again and again while requests wait
    gc.collect()
    gc.freeze()
    return model


def main() -> None:
    """Answer until there are no more requests, or the process that started this one is gone."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    given = sys.stdin.buffer
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever prints does not answer, in libraries neither
        try:
            model = load(receive(given, Begin))
            told = ""
        except UserError as error:
            model, told = None, str(error)
        except Exception as error:
            model, told = None, f"it stopped with {type(error).__name__}"
        send(answers, told)
        answers.flush()
        try:
            while model is not None:
                asks = [receive(given, Ask) for _ in range(receive(given, int))]
                for result in on_polars_thread(partial(score, model, asks)):
                    send(answers, result)
                answers.flush()
        except EOFError:
            return


if __name__ == "__main__":
    main()
