"""The quantiser against NumPy, torch and plain memory traffic, and its error on real latents.

    python benches/quantizer.py            prints the tables
    python benches/quantizer.py --write    puts them into benches/RESULTS.md as well, under its heading
    python benches/quantizer.py --errors   only the tables of errors

Every contender does the same work on the same 64 MiB of float32: values to codes with rounding and clipping, or codes
to values. Each is called in turn, so that what else the machine does meets all of them, and twice, of which the second
is timed: no contender pays for what the one before left in the caches to be written back. Ratios are of the fastest
rounds: on a machine that others use, the median tells who was interrupted (it is beside). "warm" writes into a buffer
that was written before, "new" allocates its output.
"""

import argparse
import datetime as dt
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from latentq.quantizer import Quantizer

RESULTS = Path(__file__).with_name("RESULTS.md")
LATENTS = Path(__file__).resolve().parents[2] / "shared" / "latents"
HEADING = "## Quantiser"
NOTES = """What bounds the rows that say no, where there are any:

- Dequantising into a warm buffer is bounded by one core's writing of 64 MiB. In C, here, with pages of 2 MiB:
  `rep stosb`, memset and plain 64-byte stores 28 to 31 GB/s, stores past the caches 28, plain stores in two streams 37,
  and the same where 16 to 32 MiB are written plainly and in turn with the rest past the caches (the first part and then
  the rest: 31 to 35); with pages of 4 KiB all are 23 to 31. NumPy's four in-place passes take 8.6 to 10 ms: six times
  as fast would be 40 to 47 GB/s, which no way of filling the buffer reaches, before anything is computed.
- Quantising is bounded by reading: 64 MiB read in two streams and not used take 1.3 to 1.45 ms, writing 16 MiB past
  the caches 0.6, and both at once with the arithmetic 1.6 to 1.8. Which call went before matters as much as what is
  left to gain: directly after NumPy's passes, whose 64 MiB of scratch are then written back, the plain read itself
  takes 1.8 ms and ours 2.0 to 2.1 (7.3 to 7.7 times as fast as NumPy). Hence the untimed call before each timed one.
- The figures move by some 10% from process to process, with where the arrays lie.
- On all cores the memory is shared, and a call starts its threads anew (no pool outlives a call), where torch keeps a
  pool that spins: for a few milliseconds of work that shows.
- float16 and bfloat16 to codes are bounded by arithmetic (from the first cache float32 16 * 10^9/s, bfloat16 14, and
  float16, whose conversion is a third of the work, 10.7).
- Code books of 8 bits to codes are bounded by arithmetic: eight rounds of permutes and comparisons a value.
- 6 bits packed are bounded by packing, 5 * 10^9/s, which is between 0.56 and 0.68 of the rate of 8 bits from run to
  run: that rose from 7.7 to 8.9 * 10^9/s when quantising past the caches became faster, and packing did not.
- Dequantising is level with torch.compile: 0.99 to 1.12 of its speed from run to run.

On aarch64 the same property tests pass, run by qemu-user, in an unoptimised build: the NEON code that the compiler
makes of the plain loops in a release has not been run, and no speed is known there."""
CASTS = """The rows of the source systems: imagenet.int8 is `uint8((clip(x, low, high) / (high - low) + offset) * 255)`,
truncated, and decoded at the lower edge of each step over the same range (not with its page's 24 for the encoder's 28);
imagenet_3gb is the same rounded to nearest. "Its" range is the system's constant; "range of these" is one range for all
channels, from the least to the greatest value of the even images. The two differ by 6 dB, as errors of up to one step
and of up to half a step must, so no one range gives 31.6 to the one and 33.0 to the other. On f8c32 plus and minus the
greatest magnitude gives 30.6 truncating and 36.6 to nearest; 31.6 truncating is plus and minus 5.8 standard deviations,
33.0 truncating 4 or 4.8 of them, or plus and minus each channel's own greatest magnitude (33.05); 33.0 to nearest is
about plus and minus 8."""
SHAPE = (4096, 4, 32, 32)
LOW, HIGH = -14.0, 14.0
ROUNDS = 21

Contenders = dict[str, Callable[[], Any]]


def measured(contenders: Contenders, rounds: int = ROUNDS, rest: float = 0.0) -> dict[str, tuple[float, float]]:
    """Milliseconds a call, after so many seconds of rest and a call that is not timed: the fastest and the median."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 2):
        for name, call in contenders.items():
            if rest:
                time.sleep(rest)
            call()
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: (min(samples[2:]), statistics.median(samples[2:])) for name, samples in times.items()}


def fastest(contenders: Contenders, rounds: int = ROUNDS) -> dict[str, float]:
    return {name: best for name, (best, _) in measured(contenders, rounds).items()}


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def ratios(title: str, ours: str, contenders: Contenders, goals: dict[str, float]) -> str:
    """A table: each contender's time, and how many times as fast ours is."""
    # OpenMP's workers spin for a while after a call of torch's, on the cores that the next contender needs.
    times = measured(contenders, rest=0.0 if goals else 0.02)
    rows = []
    for name, (ms, median) in times.items():
        ratio = ms / times[ours][0]
        goal = f"{goals[name]:g}" if name in goals else ""
        verdict = "" if not goal else "yes" if ratio >= goals[name] else "**no**"
        rows.append([name, f"{ms:.2f}", f"{median:.2f}", f"{ratio:.2f}", goal, verdict])
    return f"**{title}**\n\n" + table(["", "ms", "median", "ours is x times as fast", "to reach", "reached"], rows)


def throughput(threads: int) -> list[str]:
    import torch

    torch.set_num_threads(threads)
    q = Quantizer.uniform(LOW, HIGH, channels=SHAPE[1])
    x = np.random.default_rng(0).normal(0, 4, SHAPE).astype(np.float32)
    codes = q.quantize(x)
    tx, tc = torch.from_numpy(x), torch.from_numpy(codes)
    out_codes, out_x, scratch = np.zeros_like(codes), np.zeros_like(x), np.zeros_like(x)
    t_codes, t_x, t_scratch = torch.from_numpy(out_codes), torch.from_numpy(out_x), torch.from_numpy(scratch)
    scales, zeros = torch.full((SHAPE[1],), 28 / 255), torch.full((SHAPE[1],), 127)

    def numpy_quantize() -> Any:
        return ((np.clip(x, -14, 14) / 28 + 0.5) * 255).round().astype(np.uint8)

    def numpy_quantize_into() -> None:
        np.clip(x, -14, 14, out=scratch)
        np.divide(scratch, 28, out=scratch)
        np.add(scratch, 0.5, out=scratch)
        np.multiply(scratch, 255, out=scratch)
        np.round(scratch, out=scratch)
        np.copyto(out_codes, scratch, casting="unsafe")

    def numpy_dequantize() -> Any:
        return (codes.astype(np.float32) / 255 - 0.5) * 28

    def numpy_dequantize_into() -> None:
        np.copyto(out_x, codes)
        np.divide(out_x, 255, out=out_x)
        np.subtract(out_x, 0.5, out=out_x)
        np.multiply(out_x, 28, out=out_x)

    def formula(x: Any) -> Any:
        return ((x.clamp(-14, 14) / 28 + 0.5) * 255).round().to(torch.uint8)

    def inverse(codes: Any) -> Any:
        return (codes.float() / 255 - 0.5) * 28

    def torch_quantize_into() -> None:
        torch.clamp(tx, -14, 14, out=t_scratch)
        t_scratch.div_(28).add_(0.5).mul_(255).round_()
        t_codes.copy_(t_scratch)

    def torch_dequantize_into() -> None:
        t_x.copy_(tc)
        t_x.div_(255).sub_(0.5).mul_(28)

    compiled, compiled_inverse = torch.compile(formula), torch.compile(inverse)
    compiled_into = torch.compile(lambda x, out: out.copy_(formula(x)))
    compiled_inverse_into = torch.compile(lambda codes, out: out.copy_(inverse(codes)))
    per_channel = torch.quantize_per_channel(tx, scales, zeros, 1, torch.quint8)
    one = threads == 1
    where = "one thread" if one else f"{threads} threads"

    return [
        ratios(
            f"float32 to uint8, {where}, warm",
            "latentq",
            {
                "latentq": lambda: q.quantize(x, out=out_codes, threads=threads),
                "plain read (x.max())": (lambda: x.max()) if one else tx.max,
                "NumPy": numpy_quantize_into,
                "torch eager": torch_quantize_into,
                "torch.compile": lambda: compiled_into(tx, t_codes),
            },
            {"plain read (x.max())": 0.8, "NumPy": 8, "torch.compile": 1.3} if one else {},
        ),
        ratios(
            f"float32 to uint8, {where}, new",
            "latentq",
            {
                "latentq": lambda: q.quantize(x, threads=threads),
                "NumPy": numpy_quantize,
                "torch eager": lambda: formula(tx),
                "torch.quantize_per_channel": lambda: torch.quantize_per_channel(tx, scales, zeros, 1, torch.quint8),
                "torch.compile": lambda: compiled(tx),
            },
            {"torch.compile": 2} if one else {},
        ),
        ratios(
            f"uint8 to float32, {where}, warm",
            "latentq",
            {
                "latentq": lambda: q.dequantize(codes, out=out_x, threads=threads),
                "plain write (x.fill(1))": (lambda: out_x.fill(1)) if one else (lambda: t_x.fill_(1)),
                "memcpy of the output": (lambda: np.copyto(out_x, x)) if one else (lambda: t_x.copy_(tx)),
                "NumPy": numpy_dequantize_into,
                "torch eager": torch_dequantize_into,
                "torch.compile": lambda: compiled_inverse_into(tc, t_x),
            },
            {"memcpy of the output": 0.9, "NumPy": 6, "torch.compile": 1} if one else {},
        ),
        ratios(
            f"uint8 to float32, {where}, new",
            "latentq",
            {
                "latentq": lambda: q.dequantize(codes, threads=threads),
                "memcpy of the output": (lambda: x.copy()) if one else tx.clone,
                "NumPy": numpy_dequantize,
                "torch eager": lambda: inverse(tc),
                "torch quantized tensor": per_channel.dequantize,
                "torch.compile": lambda: compiled_inverse(tc),
            },
            {"torch.compile": 2} if one else {},
        ),
    ]


def rates() -> str:
    """Types and bits against float32 and 8 bits: elements a second, one thread, warm."""
    x = np.random.default_rng(0).normal(0, 4, SHAPE).astype(np.float32)
    half, brain = x.astype(np.float16), (x.view(np.uint32) >> 16).astype(np.uint16)
    out_half, out_x = half.copy(), x.copy()
    fitted = {bits: Quantizer.calibrate(x[:64], bits=bits) for bits in (4, 6, 8)}
    book = Quantizer.calibrate(x[:64], method="lloyd-max")
    q = fitted[8]
    codes, packed = q.quantize(x), {bits: fitted[bits].quantize_packed(x) for bits in fitted}
    out_packed = {bits: packed[bits].copy() for bits in packed}
    out_codes = codes.copy()
    to_codes: Contenders = {
        "float32, 8 bits": lambda: q.quantize(x, out=out_codes),
        "float16, 8 bits": lambda: q.quantize(half, out=out_codes),
        "bfloat16, 8 bits": lambda: q.quantize(brain, out=out_codes),
        "float32, 6 bits packed": lambda: fitted[6].quantize_packed(x, out=out_packed[6]),
        "float32, 4 bits packed": lambda: fitted[4].quantize_packed(x, out=out_packed[4]),
        "float32, code book of 8 bits": lambda: book.quantize(x, out=out_codes),
    }
    to_values: Contenders = {
        "float32, 8 bits": lambda: q.dequantize(codes, out=out_x),
        "float16, 8 bits": lambda: q.dequantize(codes, dtype=np.float16, out=out_half),
        "bfloat16, 8 bits": lambda: q.dequantize(codes, dtype="bfloat16", out=brain),
        "float32, 6 bits packed": lambda: fitted[6].dequantize_packed(packed[6], SHAPE, out=out_x),
        "float32, 4 bits packed": lambda: fitted[4].dequantize_packed(packed[4], SHAPE, out=out_x),
        "float32, code book of 8 bits": lambda: book.dequantize(codes, out=out_x),
    }
    goals = {"float16, 8 bits": 1, "bfloat16, 8 bits": 1, "float32, 6 bits packed": 0.6, "float32, 4 bits packed": 0.6}
    rows = []
    for name, forth, back in zip(to_codes, *(fastest(c).values() for c in (to_codes, to_values)), strict=True):
        if not rows:
            first = forth, back
        ratio = first[0] / forth, first[1] / back
        goal = goals.get(name)
        verdict = "" if goal is None else "yes" if min(ratio) >= goal else "**no**"
        gigas = [f"{x.size / ms / 1e6:.2f}" for ms in (forth, back)]
        rows.append([name, gigas[0], f"{ratio[0]:.2f}", gigas[1], f"{ratio[1]:.2f}", goal or "", verdict])
    header = ["", "to codes, 10^9/s", "of float32", "to values, 10^9/s", "of float32", "to reach", "reached"]
    return "**Types and bits, one thread, warm**\n\n" + table(header, rows)


def small() -> str:
    """One latent of 4,096 elements: the call less the kernel, which is what each further latent costs."""
    rows = []
    q = Quantizer.uniform(LOW, HIGH, channels=4)
    many = np.random.default_rng(0).normal(0, 4, (33, 4, 32, 32)).astype(np.float32)
    codes = q.quantize(many)
    out_codes, out_x = codes.copy(), many.copy()
    calls: dict[str, Callable[[int], Any]] = {
        "quantize, warm": lambda n: q.quantize(many[:n], out=out_codes[:n]),
        "dequantize, warm": lambda n: q.dequantize(codes[:n], out=out_x[:n]),
        "quantize, new": lambda n: q.quantize(many[:n]),
        "dequantize, new": lambda n: q.dequantize(codes[:n]),
    }
    slices = fastest({"s": lambda: (many[:1], codes[:1])}, 5001)["s"] * 1e3
    for name, call in calls.items():
        sliced = slices if name.endswith("warm") else slices / 2
        times = fastest({"one": lambda call=call: call(1), "all": lambda call=call: call(33)}, 5001)
        one, kernel = times["one"] * 1e3 - sliced, (times["all"] - times["one"]) / 32 * 1e3
        verdict = "yes" if one - kernel < 2 else "**no**"
        rows.append([name, f"{one:.2f}", f"{kernel:.2f}", f"{one - kernel:.2f}", "2", verdict])
    header = ["", "call, us", "kernel, us", "overhead, us", "below", "reached"]
    return "**One latent of 4,096 elements**\n\n" + table(header, rows)


def errors() -> list[str]:
    """SQNR of every scheme on real latents: even images calibrate, odd ones are measured."""
    tables = []
    for name in ("f8c32", "f32c32"):
        path = LATENTS / f"{name}.npy"
        if not path.is_file():
            continue
        x = np.load(path)
        even, odd = x[::2], x[1::2]
        channels = x.shape[1]
        low, high = float(even.min()), float(even.max())
        schemes = {
            "imagenet.int8, its +-14, truncating": Quantizer.uniform(-14, 14, channels=channels, rounding="truncate"),
            "imagenet.int8, range of these": Quantizer.uniform(low, high, channels=channels, rounding="truncate"),
            "imagenet_3gb, its +-6.5": Quantizer.uniform(-6.5, 6.5, channels=channels),
            "imagenet_3gb, range of these": Quantizer.uniform(low, high, channels=channels),
        }
        for bits in (8, 6, 4):
            for method in ("minmax", "percentile", "mse", "lloyd-max"):
                schemes[f"{method}, {bits} bits"] = Quantizer.calibrate(even, bits=bits, method=method)
        rows = []
        for scheme, q in schemes.items():
            m = q.measure(odd)
            clipped = f"{100 * sum(m.clip_rate) / channels:.3f}"
            rows.append(
                [scheme, f"{m.overall_sqnr_db:.2f}", f"{min(m.sqnr_db):.2f}", clipped, f"{m.largest_error:.3f}"]
            )
        header = ["scheme", "SQNR, dB", "worst channel", "clipped, %", "largest error"]
        title = f"**{name}.npy** {x.shape}: calibrated on the images of even number, measured on the odd"
        tables.append(f"{title}\n\n{table(header, rows)}")
    return tables


def machine() -> str:
    import torch

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        text = cpuinfo.read_text()
        model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), model)
        model += " with AVX-512 VBMI" if "avx512_vbmi" in text or "avx512vbmi" in text else ""
    return (
        f"{dt.date.today()}, {model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; "
        f"Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}. "
        f"`python benches/quantizer.py --write`; 64 MiB of float32 {SHAPE}, the fastest of {ROUNDS} rounds in turn."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    parser.add_argument("--errors", action="store_true", help="only the tables of errors")
    options = parser.parse_args()
    parts = []
    if not options.errors:
        parts = [machine(), *throughput(1), rates(), small(), *throughput(os.cpu_count() or 1)]
        parts += [NOTES]
    parts += ["### Error on real latents", CASTS, *errors()]
    text = "\n\n".join(parts)
    sys.stdout.write(text + "\n")
    if options.write:
        old = RESULTS.read_text() if RESULTS.is_file() else "# Results\n"
        before, _, after = old.partition(f"{HEADING}\n")
        end = after.find("\n## ")
        rest = after[end + 1 :] if end >= 0 else ""
        RESULTS.write_text(f"{before.rstrip()}\n\n{HEADING}\n\n{text}\n" + (f"\n{rest}" if rest else ""))


if __name__ == "__main__":
    main()
