"""Time a run of two workers on a Ray cluster against two plain ranks, with units of ten seconds.

    python benches/processes/ray_overhead.py [UNITS]

The network of the runs waits for 2.5 s a batch and computes little, as a GPU would from the view of the processor. A
unit is four batches. Prints the seconds from the first unit that was published to the last, for each worker and unit in
between, and those of the whole command, start and end of the cluster and of the processes included. The former are a
little below ten, since all units but the last are published while the next one's first batch is encoded.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import latentq
from latentq import RayOptions

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from conftest import paint

BATCH, BATCHES, SECONDS = 4, 4, 2.5
WORKERS = 2


class Waiting:
    """The built-in transform, which waits before each batch."""

    def __init__(self):
        self._transform = latentq.load_autoencoder("dct-f8c16")

    def __getattr__(self, name):
        return getattr(self.__dict__["_transform"], name)

    def __getstate__(self):
        return self.__dict__

    def __setstate__(self, state):
        self.__dict__.update(state)

    def encode(self, pixels):
        time.sleep(SECONDS)
        return self._transform.encode(pixels)


def encode(folder, out, **options):
    return latentq.encode(
        folder / "source", folder / out, autoencoder=Waiting(), size=64, unit_size=BATCH * BATCHES, batch_size=BATCH,
        calibration=BATCH, progress=None, **options,
    )  # fmt: skip


def run_ranks(folder):
    command = [sys.executable, __file__, "--rank", str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(WORKERS)]
    assert [rank.wait() for rank in ranks] == [0] * WORKERS


def run_ray(folder):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    encode(folder, "ray", ray=RayOptions("local", workers=WORKERS))


def main():
    if sys.argv[1:2] == ["--rank"]:
        encode(Path(sys.argv[2]), "ranks", rank=int(sys.argv[3]), world_size=WORKERS)
        return
    units = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for index in range(units * BATCH * BATCHES):
            paint(folder / "source" / f"{index:05}.png", index)
        between = {}
        for name, run in (("ranks", run_ranks), ("ray", run_ray)):
            start = time.perf_counter()
            run(folder)
            whole = time.perf_counter() - start
            times = sorted(path.stat().st_mtime for path in (folder / name).glob("0*/index.json"))
            assert len(times) == units
            between[name] = WORKERS * (times[-1] - times[0]) / (units - WORKERS)
            print(f"{name}: {between[name]:.3f} s a unit and worker, {whole:.1f} s in all")
        print(f"Ray takes {between['ray'] / between['ranks'] - 1:+.1%}")


if __name__ == "__main__":
    main()
