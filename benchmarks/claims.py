"""How other libraries compare, claim by claim: each is run in every library that is installed, the same way.

The table of ``docs/libraries.md`` shows what is written here, and a test compares the two; so does the one of
``docs/migrating.md`` with ``conventions``. Libraries that are not installed keep their recorded results. In an
environment with the peers: ``pip install 'torchjd[full]' LibMTL conflictfree``, then ``python benchmarks/claims.py``.
Writes ``benchmarks/results/claims.json``. About three minutes on one core.
"""

import argparse
import datetime
import json
import platform
import warnings
from pathlib import Path
from typing import Any

import conventions
import number_claims
import torch
import training_claims
from claiming import CLAIMS
from peers import PEERS, Peer

OUT = Path(__file__).parent / "results" / "claims.json"
MODULES = (training_claims, number_claims)  # importing them fills CLAIMS


def observe(installed: dict[str, Peer], chosen: list[str]) -> dict[str, dict[str, str]]:
    """What each library does, claim by claim."""
    found: dict[str, dict[str, str]] = {}
    for name in chosen:
        found[name] = {}
        for package, peer in installed.items():
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name][package] = CLAIMS[name](peer)
        print(f"{name:30s}", " | ".join(found[name].get(package, "not installed") for package in PEERS), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(CLAIMS), choices=CLAIMS)
    parser.add_argument("--scripts", type=Path, help="a clone of AvivNavon/nash-mtl, for its conventions")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    installed = {package: kind() for package, kind in PEERS.items() if kind.version()}
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    record.setdefault("checked", {}), record.setdefault("claims", {}), record.setdefault("conventions", {})
    for package, peer in installed.items():
        record["checked"][package] = {"version": peer.version(), "date": datetime.date.today().isoformat()}
    record["environment"] = {"python": platform.python_version(), "torch": torch.__version__}
    for name, results in observe(installed, options.only).items():
        record["claims"].setdefault(name, {}).update({package: said for package, said in results.items() if said})
    record["claims"] = {name: record["claims"][name] for name in CLAIMS if name in record["claims"]}
    record["conventions"].update(conventions.measure(installed, options.scripts))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
