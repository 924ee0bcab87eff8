"""Run the command lines of a documentation page."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from latentq.cli.main import main


def run_line(line: str, folder: Path) -> None:
    """Runs a line in a folder, as a shell would; it must exit with 0.

    A line that only calls latentq runs in this process, which saves the imports. Lines for the shell itself (`|`, `>`,
    `*`, variables, continuation lines) and other programs run in bash.
    """
    if line.startswith("latentq ") and not re.search(r"[|;&<>$*?~`\\#\n]", line):
        stderr = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stderr(stderr):
            code = main(shlex.split(line)[1:])
        assert code == 0, f"{line}\n{stderr.getvalue()}"
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
