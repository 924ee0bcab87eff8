"""The project's tests of everything that touches devices, on this machine."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET

from gpu import standins
from gpu.harness import Run

FILES = (
    "quantizer/test_quantizer_torch.py", "reading/test_resident.py", "reading/test_loader.py",
    "encoding/test_stages.py", "encoding/test_stored.py", "encoding/test_rejects.py", "encoding/test_out_of_memory.py",
    "encoding/test_shapes.py", "encoding/test_precision.py", "models/test_arithmetic.py",
    "models/test_group_norm.py",
)  # fmt: skip


def work(run: Run) -> None:
    """Runs pytest in a process of its own, in a rehearsal on one file; tests that need missing packages are skipped."""
    folder = standins.ROOT / "tests"
    files = [folder / name for name in (FILES[1:2] if run.dry else FILES) if (folder / name).exists()]
    run.check("test files", len(files) == (1 if run.dry else len(FILES)), len(files), 1 if run.dry else len(FILES))
    if not standins.has("pytest"):
        run.not_run("tests", "pytest is missing")
        return
    report, settings = run.folder / "junit.xml", run.folder / "pytest.ini"
    settings.write_text("[pytest]\n")  # the project's own names plugins that may be missing
    arguments = ["-q", "-c", settings, "--rootdir", standins.ROOT, "-p", "no:cacheprovider", "-p", "standins"]
    if standins.has("xdist") and not run.dry:
        arguments += ["-n", "8", "--dist", "worksteal"]
    command = standins.command("pytest", *arguments, "--junitxml", report, *files)
    ended = subprocess.run(
        command,
        env=standins.environment(),
        capture_output=True,
        text=True,
        timeout=run.patience(35),
        cwd=run.folder,
        check=False,
    )
    if not report.exists():
        run.check(
            "pytest runs", False, f"exit code {ended.returncode}: {(ended.stderr or ended.stdout)[-300:]}", "a report"
        )
        return
    cases = list(ET.parse(report).iter("testcase"))
    failed = [_name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [_name(case) for case in cases if case.find("skipped") is not None]
    run.number("tests passed", len(cases) - len(failed) - len(skipped), "")
    run.number("tests skipped", len(skipped), "")
    passed = len(cases) > len(failed) + len(skipped)
    run.check(
        "tests", passed and not failed, failed[:20] or f"{len(cases)} tests", "none failed", f"{len(failed)} failed"
    )


def _name(case: ET.Element) -> str:
    return f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
