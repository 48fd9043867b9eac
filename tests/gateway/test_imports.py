"""The gateway plane needs nothing of the engine plane."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys

class Refuse:
    names = {"ray", "torch", "vllm", "psutil", "transformers", "numpy"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names or name.startswith(("serving.engine", "serving.operate")):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
import serving.gateway
for module in pkgutil.walk_packages(serving.gateway.__path__, "serving.gateway."):
    importlib.import_module(module.name)
    print(module.name)
"""


def test_every_module_imports_without_ray_torch_and_vllm() -> None:
    """With an import hook that refuses the engine's packages, every module of the plane still imports."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "serving.gateway.server" in run.stdout


def test_commands_start_without_what_only_some_need() -> None:
    """`serving models list` imports no database library and no HTTP server: they would more than double its CPU time."""
    code = "import sys, serving.cli; print(sorted({'sqlalchemy', 'psycopg', 'uvicorn', 'ray'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
