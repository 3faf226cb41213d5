"""What importing o1core.kernels costs."""

import json
import subprocess
import sys

CODE = (
    "import json, sys; import o1core.kernels; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
)
HEAVY = {
    *("triton", "transformers", "tokenizers", "safetensors", "jinja2", "matplotlib", "math_verify", "sympy"),
    *("latex2sympy2_extended", "tqdm", "trl", "pytest", "accelerate", "datasets"),
}


def test_importing_the_kernels_imports_torch_and_nothing_else_heavy():
    """What torch imports by itself is torch's."""

    def modules(code):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(json.loads(done.stdout))

    with_torch_alone = modules(CODE.replace("o1core.kernels", "torch"))
    added = modules(CODE) - with_torch_alone
    assert added & HEAVY == set()
    assert "o1core" in added
