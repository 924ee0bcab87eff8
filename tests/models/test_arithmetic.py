"""float32 means IEEE float32 under every setting of TF32 that a process can have, and the settings come back."""

import json
import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from latentq.models.precision import fixed_arithmetic

SETTINGS = {
    "torch's defaults": "",
    "products in TF32, older interface": "torch.backends.cuda.matmul.allow_tf32 = True",
    "set_float32_matmul_precision high": "torch.set_float32_matmul_precision('high')",
    "set_float32_matmul_precision medium": "torch.set_float32_matmul_precision('medium')",
    "convolutions in float32, older interface": "torch.backends.cudnn.allow_tf32 = False",
    "all in TF32": "torch.backends.fp32_precision = 'tf32'",
    "products in TF32": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "convolutions in TF32": "torch.backends.cudnn.conv.fp32_precision = 'tf32'",
    "cuDNN in TF32": "torch.backends.cudnn.fp32_precision = 'tf32'",
    "convolutions in IEEE": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "cuDNN in IEEE": "torch.backends.cudnn.fp32_precision = 'ieee'",
    "all in IEEE": "torch.backends.fp32_precision = 'ieee'",
    "all in bfloat16": "torch.backends.fp32_precision = 'bf16'",
    "products of the CPU in bfloat16": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "convolutions of the CPU in bfloat16": "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
    "benchmarked convolutions": "torch.backends.cudnn.benchmark = True; torch.backends.cudnn.deterministic = False",
    "TF32 forced by the environment": "",
}

PROBE = """
    import json, os, sys, warnings
    import torch
    import torch._dynamo  # once, before the forks
    from latentq.models.precision import fixed_arithmetic

    warnings.simplefilter("ignore")
    backends = torch.backends

    def state():
        readers = {
            "all": lambda: backends.fp32_precision,
            "cudnn": lambda: backends.cudnn.fp32_precision,
            "convolutions": lambda: backends.cudnn.conv.fp32_precision,
            "products": lambda: backends.cuda.matmul.fp32_precision,
            "CPU": lambda: backends.mkldnn.fp32_precision,
            "CPU convolutions": lambda: backends.mkldnn.conv.fp32_precision,
            "CPU products": lambda: backends.mkldnn.matmul.fp32_precision,
            "older convolutions": lambda: backends.cudnn.allow_tf32,
            "older products": torch.get_float32_matmul_precision,
            "benchmark": lambda: backends.cudnn.benchmark,
            "deterministic": lambda: backends.cudnn.deterministic,
        }
        found = {}
        for name, read in readers.items():
            try:
                found[name] = read()
            except (RuntimeError, AttributeError) as error:
                found[name] = type(error).__name__
        return found

    results = {}
    for name, line in json.loads(sys.argv[1]).items():
        read_end, write_end = os.pipe()
        if os.fork() == 0:
            exec(line)
            before = state()
            with fixed_arithmetic():
                inside = state()
                torch.compile(lambda x: x @ x + 1, backend="eager")(torch.rand(3, 3))
            with fixed_arithmetic("tf32"):
                tf32 = state()
            os.write(write_end, json.dumps([before, inside, tf32, state()]).encode())
            os._exit(0)
        os.close(write_end)
        results[name] = json.loads(os.fdopen(read_end).read())
        os.wait()
    print(json.dumps(results))
"""


def probed(settings: dict[str, str], **environment: str) -> dict[str, list[dict[str, object]]]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROBE), json.dumps(settings)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    results: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def states() -> dict[str, list[dict[str, object]]]:
    forced = "TF32 forced by the environment"
    newer = hasattr(torch.backends.cudnn, "conv")
    settings = {
        name: line for name, line in SETTINGS.items() if name != forced and (newer or "fp32_precision" not in line)
    }
    return probed(settings) | probed({forced: ""}, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1")


def computes_in(state: dict[str, object]) -> tuple[str, str]:
    """The precision of convolutions and of products that torch's settings amount to."""
    older = {"True": "tf32", "False": "ieee", "highest": "ieee", "high": "tf32", "medium": "tf32"}
    found = []
    for name in ("convolutions", "products"):
        value = str(state[name])
        if value == "AttributeError":  # torch < 2.9
            value = older[str(state[f"older {name}"])]
        found.append("ieee" if value == "none" else value)
    return found[0], found[1]


@pytest.mark.long
def test_every_setting_computes_in_the_precision_that_was_asked_for(states):
    for name, (_, inside, tf32, _) in states.items():
        assert computes_in(inside) == ("ieee", "ieee"), name
        assert computes_in(tf32) == ("tf32", "tf32"), name
        assert (inside["benchmark"], inside["deterministic"]) == (False, True), name
        if inside["CPU products"] != "AttributeError":  # torch < 2.9
            on_cpu = [
                state[f"CPU {operations}"] for state in (inside, tf32) for operations in ("convolutions", "products")
            ]
            assert on_cpu == ["ieee"] * 4, name


@pytest.mark.long
def test_every_setting_is_restored(states):
    for name, (before, _, _, after) in states.items():
        assert after == before, name


def test_an_exception_restores_the_settings():
    before = torch.backends.cudnn.deterministic
    with pytest.raises(KeyError), fixed_arithmetic():
        raise KeyError
    assert torch.backends.cudnn.deterministic == before


def test_a_thread_that_leaves_first_does_not_change_the_arithmetic_of_another():
    before = torch.backends.cudnn.deterministic
    inside, may_leave = threading.Event(), threading.Event()

    def stays() -> None:
        with fixed_arithmetic():
            inside.set()
            may_leave.wait(60)

    other = threading.Thread(target=stays)
    other.start()
    assert inside.wait(60)
    with fixed_arithmetic():
        pass
    assert torch.backends.cudnn.deterministic
    may_leave.set()
    other.join(60)
    assert torch.backends.cudnn.deterministic == before


def test_a_thread_that_asks_for_another_precision_waits():
    inside, may_leave, entered = threading.Event(), threading.Event(), threading.Event()

    def stays() -> None:
        with fixed_arithmetic("tf32"):
            inside.set()
            may_leave.wait(60)

    def follows() -> None:
        with fixed_arithmetic("ieee"):
            entered.set()

    threads = [threading.Thread(target=stays), threading.Thread(target=follows)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    assert not entered.wait(0.2)
    may_leave.set()
    assert entered.wait(60)
    for thread in threads:
        thread.join(60)
