"""`import latentq` and each command import little, and nothing that they do not use."""

import json
import subprocess
import sys

import latentq


def measured(code: str) -> dict:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_heavy_libraries_are_not_imported():
    modules = measured("import latentq, sys, json; print(json.dumps(sorted(sys.modules)))")
    assert "latentq._core" in modules
    for heavy in ("torch", "diffusers", "streaming", "transformers", "PIL", "tqdm"):
        assert heavy not in modules


def test_image_mds_and_quantizer_need_numpy_only():
    used = "latentq.image, latentq.mds, latentq.Quantizer"
    modules = measured(f"import latentq, sys, json; {used}; print(json.dumps(sorted(sys.modules)))")
    assert not {"torch", "diffusers", "streaming", "PIL"} & set(modules)


def test_every_public_name_is_there():
    for name in latentq.__all__:
        assert getattr(latentq, name) is not None
    assert set(dir(latentq)) >= set(latentq.__all__)


def test_functions_stay_functions_when_their_modules_are_imported():
    code = """
import json, latentq.cli.main, latentq.encoding.pipeline, latentq.reading.dataset
import latentq.inspect.pictures, latentq.inspect.verify
print(json.dumps([callable(latentq.encode), callable(latentq.verify)]))
"""
    assert measured(code) == [True, True]
