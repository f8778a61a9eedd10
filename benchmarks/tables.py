"""README's tables, from `benchmarks/results/*.json`.

python benchmarks/tables.py          # rewrites the tables in README.md
python benchmarks/tables.py --check  # exits with 1 when they are not what the results say
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rows(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def where(document: dict[str, Any]) -> str:
    gpus = document["machine"]["gpus"]
    names = ", ".join(g["name"] for g in gpus) or f"{document['machine'].get('cpus')} CPU cores, no GPU"
    family = document["versions"].get("tensorrt_rtx") or document["versions"].get("tensorrt")
    return f"{names}, TensorRT for RTX {family}, torch {document['versions']['torch']}, {document['date'][:10]}"


def gpu_table() -> str:
    document = json.loads((RESULTS / "gpu_suite.json").read_text())
    body = []
    for name, test in document["tests"].items():
        match = re.search(r"every_size\[(\w+)\]", name)
        if not match:
            continue
        if test["outcome"] != "passed":
            body.append([match[1], "", "", "", test["outcome"]])
            continue
        plan = next(v for v in test["verdicts"] if v["subject"] == "plan")
        batches = ", ".join(str(m["sizes"]["B"]) for m in plan["measures"])
        bound = plan["bound"]["value"]
        body.append([match[1], f"{plan['worst']:.2e}", f"{bound:.2e}", batches, plan["state"]])
    body.sort(key=lambda row: ["fp32", "tf32", "fp16", "bf16"].index(row[0]))
    states = [t["outcome"] for t in document["tests"].values()]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("passed", "failed", "skipped") if s in states)
    table = rows(["Swin-T plan", "relative L2, worst row", "bound", "batches", "verdict"], body)
    return f"{table}\n\nThe saved plan against eager PyTorch in fp32. GPU suite: {counts}. {where(document)}."


def overhead_table() -> str:
    document = json.loads((RESULTS / "session_overhead.json").read_text())
    body = [
        [
            str(r["batch"]),
            f"{r['raw_back_to_back_us']:.0f}",
            f"{r['session_back_to_back_us']:.0f}",
            f"{r['throughput_ratio']:.3f}",
            f"{r['added_us']:.0f}",
        ]
        for r in document["rows"]
    ]
    header = ["batch", "raw, us", "session, us", "raw / session", "added to one synchronized call, us"]
    about = "`trtship.load` on device tensors against raw `execute_async_v3` on the same plan, no CUDA graph"
    return f"{rows(header, body)}\n\n{about}; {document['model']}, {document['precision']}. {where(document)}."


def deploy_table() -> str:
    document = json.loads((RESULTS / "deploy_time.json").read_text())
    body = [
        [k, f"{v['seconds']:g}", f"{v['peak_mib']}" if "peak_mib" in v else ""] for k, v in document["rows"].items()
    ]
    return f"{rows([document['what'], 'seconds', 'peak MiB'], body)}\n\n{where(document)}."


TABLES: dict[str, Callable[[], str]] = {"gpu": gpu_table, "overhead": overhead_table, "deploy": deploy_table}


def fill(text: str) -> str:
    """README with each `<!-- table: NAME -->` ... `<!-- end -->` filled in."""
    return re.sub(
        r"<!-- table: (\w+) -->\n.*?<!-- end -->",
        lambda m: f"<!-- table: {m[1]} -->\n{TABLES[m[1]]()}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def main() -> int:
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = fill(before)
    if "--check" in sys.argv:
        return int(before != after)
    readme.write_text(after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
