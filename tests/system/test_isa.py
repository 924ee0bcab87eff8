"""`LATENTQ_ISA` caps the instruction set, and results do not depend on it."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import latentq

CAPS = ("scalar", "neon", "avx2", "avx512")

# Prints the instruction set and a hash of everything that is computed by kernels.
COMPUTE = """
import hashlib, io, json
import numpy as np
from PIL import Image
import latentq
from latentq import Quantizer, Transform, image

found, rng = {}, np.random.default_rng(0)

def note(name, *arrays):
    found[name] = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

photo = 40 * np.cumsum(rng.normal(0, 1, (97, 203, 3)), 1) + rng.normal(0, 40, (97, 203, 3))
photo = np.clip(photo, 0, 255).astype(np.uint8)
for filter in ("box", "bilinear", "hamming", "bicubic", "lanczos"):
    note(filter, image.resize(photo, 33, 250, filter=filter), image.fit(photo, 64, filter=filter))
file = io.BytesIO()
Image.fromarray(photo).save(file, "JPEG")
note("file to crop", image.load(file.getvalue(), 48))

x = rng.normal(0, 3, (5, 4, 16, 24)).astype(np.float32)
x[0, 0, :2] = 1e30
schemes = {
    "uniform": lambda bits: Quantizer.uniform(-6, 6, channels=4, bits=bits),
    "truncate": lambda bits: Quantizer.uniform(-6, 6, channels=4, bits=bits, rounding="truncate"),
    "codebook": lambda bits: Quantizer.calibrate(x[1:], bits=bits, method="lloyd-max"),
    "trellis": lambda bits: Quantizer.calibrate(x[1:], bits=bits, method="trellis"),
}
for name, scheme in schemes.items():
    for bits in (4, 6, 8):
        quantizer = scheme(bits)
        codes = [quantizer.quantize(values) for values in (x, x[1:].astype(np.float16), x.astype(np.float64))]
        values = [quantizer.dequantize(codes[0], dtype=dtype) for dtype in ("float32", "float16", "bfloat16")]
        packed = quantizer.pack(codes[0])
        note(f"{name} {bits}", *codes, *values, packed, quantizer.unpack(packed, codes[0].shape))
smooth = np.cumsum(rng.normal(0, 1, (40, 4, 16, 24)), -1).astype(np.float32)
transform = Transform.calibrate(smooth, bytes=400)
encoded = transform.encode(smooth)
note("transform", encoded, transform.decode(encoded, smooth.shape))
print(json.dumps([latentq.isa(), found]))
"""


def run(cap: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LATENTQ_ISA": cap}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def computed(cap: str) -> tuple[str, dict[str, str]]:
    done = run(cap, COMPUTE)
    assert not done.returncode, done.stderr
    isa, found = json.loads(done.stdout)
    return isa, found


def test_results_are_the_same_under_every_cap():
    best, expected = computed("")
    assert best in CAPS
    assert len(set(expected.values())) == len(expected)
    for cap in CAPS[: CAPS.index(best)]:
        isa, found = computed(cap)
        assert CAPS.index(isa) <= CAPS.index(cap)
        assert found == expected


def test_instruction_set_of_this_process_is_told():
    assert latentq.isa() in CAPS
    assert run("scalar", "import latentq; print(latentq.isa())").stdout == "scalar\n"
    neon = "neon" if platform.machine() == "aarch64" else "scalar"
    assert run("neon", "import latentq; print(latentq.isa())").stdout == f"{neon}\n"


def test_unknown_cap_is_refused():
    done = run("avx1024", "import latentq")
    assert done.returncode
    assert done.stderr.endswith('ValueError: LATENTQ_ISA must be scalar, neon, avx2 or avx512, not "avx1024"\n')


def test_unknown_cap_is_one_line_of_the_command_line():
    environment = os.environ | {"LATENTQ_ISA": "avx1024"}
    for program in ([Path(sys.executable).with_name("latentq")], [sys.executable, "-m", "latentq"]):
        for arguments in (["--help"], ["info", "out"]):
            done = subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr == 'latentq: LATENTQ_ISA must be scalar, neon, avx2 or avx512, not "avx1024"\n'
