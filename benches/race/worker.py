"""Runs one contender in its own process and environment: `python worker.py KIND NAME FOLDER`.

It reads a command on each line of stdin and answers with a line of JSON on stdout: `prepare` (open, and check the
values), `close` (drop all that is open), `run` (do the work once; the answer has its seconds). What libraries print
goes to stderr.
"""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

KINDS = {"load": "race.loaders", "first batch": "race.loaders", "write": "race.writers", "pixels": "race.pixels"}


def main() -> None:
    kind, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    contender = importlib.import_module(KINDS[kind]).contender(kind, name, folder)
    for line in sys.stdin:
        try:
            start = time.perf_counter()
            answer = getattr(contender, line.strip())()
            seconds = time.perf_counter() - start
            answers.write(json.dumps({"seconds": seconds, **(answer or {})}) + "\n")
        except BaseException as error:  # told to the driver, which goes on without this contender
            traceback.print_exc()
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0]}) + "\n")


if __name__ == "__main__":
    main()
