"""`latentq decode` and the imports that it needs."""

import json
import subprocess
import sys

import latentq

HEAVY = ("diffusers", "transformers", "safetensors", "open_clip", "streaming", "datasets", "pandas", "pyarrow")


def test_decoding_with_the_built_in_transform_imports_nothing_heavy_but_torch(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", size=64)
    code = """
import json, sys
from latentq.cli.main import main
assert main(["decode", "out", "--index", "5", "-o", "5.png"]) == 0
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout.splitlines()[-1])
    assert "torch" in modules
    assert not set(HEAVY) & set(modules)
