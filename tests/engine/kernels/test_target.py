"""The target for kernels: it imports less than Numba's own, and functions that users compile are not affected."""

import subprocess
import sys
import textwrap

import pytest

from tests.strategies import slow

KERNEL = """
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = gn.layer_norm(4)(rows)
    assert abs(found.mean()) < 1e-6 and abs(found.std() - 1) < 1e-2
"""
FUNCTION = """
    @numba.njit
    def mixed(array, text, number):
        array[-1] += number
        total = array.sum() + min(number, 3) + max(number, 3) + int(2.5)
        return total, text.upper(), array[1:].copy()[-1], np.sort(array)

    total, text, last, found = mixed(np.array([3.0, 1.0, 2.0]), "abc", 5)
    assert (total, text, last, list(found)) == (21.0, "ABC", 7.0, [1.0, 3.0, 7.0])
"""


def run(*parts, cache):
    program = "import sys\nimport numba\nimport numpy as np\nimport gennorm as gn\n" + "".join(
        map(textwrap.dedent, parts)
    )
    settings = {"GENNORM_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "error", "-c", f"import os\nos.environ.update({settings})\n{program}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout


# Before a kernel was compiled, and after it.
@pytest.mark.parametrize("parts", [(KERNEL, FUNCTION), slow((FUNCTION, KERNEL, FUNCTION))])
def test_users_functions(parts, tmp_path):
    run(*parts, cache=tmp_path)


def test_kernels_do_not_import_linear_algebra(tmp_path):
    ask = "print([name for name in ('numba.np.arraymath', 'numba.np.linalg', 'scipy.linalg') if name in sys.modules])"
    assert run(KERNEL, ask, cache=tmp_path) == "[]\n"


def test_a_step_is_compiled_once(tmp_path):
    """One compilation serves all constants that a step is called with, and all kernels that call it."""
    ask = """
        from gennorm.engine.compiler import jit
        from gennorm.engine.kernels import steps
        gn.rms_norm(4)(rows)
        assert len(jit.built) == 2
        compiled = [len(step.overloads) for (function, *_), step in jit._steps.items() if function is steps.offsets]
        print(compiled)
    """
    assert run(KERNEL, ask, cache=tmp_path) == "[1]\n"
