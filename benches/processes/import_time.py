"""Time `import latentq` after `import numpy`.

    python benches/processes/import_time.py

Prints the median and the maximum of 21 processes.
"""

import statistics
import subprocess
import sys

CODE = "import time, numpy; start = time.perf_counter(); import latentq; print(time.perf_counter() - start)"


def main() -> None:
    times = []
    for _ in range(21):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    print(f"import latentq, after numpy: median {statistics.median(times):.4f} s, max {max(times):.4f} s")


if __name__ == "__main__":
    main()
