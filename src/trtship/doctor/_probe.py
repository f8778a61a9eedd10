"""Run as a script in a process of its own: imports the modules named as arguments, one JSON line each on stdout.

A native library that crashes, hangs or prints while it is loaded harms this process alone.
"""

import importlib
import json
import os
import sys


def facts(name: str, module: object) -> dict[str, object]:
    if name == "onnxruntime":
        return {"providers": module.get_available_providers()}  # type: ignore[attr-defined]
    if name == "torch":
        cuda = module.cuda  # type: ignore[attr-defined]
        try:
            cuda.init()
        except Exception as error:
            return {"gpu_error": str(error).splitlines()[0]}
    return {}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        try:
            line: dict[str, object] = {"module": name, "error": "", **facts(name, importlib.import_module(name))}
        except BaseException as error:
            text = (str(error).strip().splitlines() or [""])[0]
            line = {"module": name, "error": f"{type(error).__name__}: {text}".removesuffix(": ")}
        print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
