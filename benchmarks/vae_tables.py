"""The models on four published tables, with the plain sum and with the default method, beside the published errors.

The tables are not part of the repository: Adult and Wine Quality are UCI's, as HI-VAE distributes them, diamonds is
ggplot2's and rwm5yr that of R's package COUNT. Give each a folder with ``data.csv`` and ``schema.json``, and train
with the experiment, whose records are collected here:

    python -m gradsurgery.integrations.vae.experiment --data FOLDER ... --model vae --epochs 400 --out runs/vae/tables
    python benchmarks/vae_tables.py runs/vae/tables

Prints the table of ``benchmarks/README.md`` and writes ``benchmarks/results/vae_tables.json``: the records without
their histories.
"""

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLES = ("adult", "wine", "diamonds", "rwm5yr")
DEFAULT = "lossbalancer"
NAMES = {"vae": "VAE", "iwae": "IWAE", "dreg": "DReG", "hivae": "HI-VAE"}
# Javaloy, Meghdadi and Valera, Boosting heterogeneous VAEs via multi-objective optimization, 2021, table 1: the plain
# sum, and the best of twelve combinations of methods, picked for each table and model.
PUBLISHED = {
    "vae": {"adult": (0.21, 0.09), "wine": (0.08, 0.07), "diamonds": (0.18, 0.13), "rwm5yr": (0.10, 0.02)},
    "iwae": {"adult": (0.22, 0.12), "wine": (0.07, 0.06), "diamonds": (0.18, 0.12), "rwm5yr": (0.09, 0.02)},
    "dreg": {"adult": (0.23, 0.16), "wine": (0.07, 0.06), "diamonds": (0.17, 0.13), "rwm5yr": (0.09, 0.02)},
    "hivae": {"adult": (0.12, 0.08), "wine": (0.12, 0.11), "diamonds": (0.11, 0.01), "rwm5yr": (0.04, 0.02)},
}


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The finished cells of an experiment, without the histories of their seeds."""
    records = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or record.get("status") != "finished":
            continue  # the summary
        kept = ("seed", "error", "log_likelihood", "best_epoch")
        record["seeds"] = [{key: seed[key] for key in kept} for seed in record["seeds"]]
        records.append(record)
    return records


def print_table(records: list[dict[str, Any]]) -> None:
    """One line a model and training: published, measured, over how many epochs."""
    records = sorted(records, key=lambda record: record["settings"]["epochs"])  # the longest training stays
    found = {tuple(r["settings"][key] for key in ("table", "model", "method", "rescale")): r for r in records}
    print("| model | training | " + " | ".join(TABLES) + " |")
    print("|---|---|" + "---|" * len(TABLES))
    for model, name in NAMES.items():
        for row, method in enumerate(("sum", DEFAULT)):
            cells = []
            for table in TABLES:
                record = found.get((table, model, method, True))
                published = f"{PUBLISHED[model][table][row]:.2f}"
                if record is None:
                    cells.append(f"– ({published})")
                    continue
                seeds = [own["error"] for own in record["seeds"]]
                bold = "**" if row and round(record["error"], 3) <= PUBLISHED[model][table][1] else ""
                cells.append(
                    f"{bold}{record['error']:.3f}{bold} ({published}) [{min(seeds):.3f}, {max(seeds):.3f}], "
                    f"{record['settings']['epochs']}"
                )
            print(f"| {name} | {'plain sum' if method == 'sum' else 'LossBalancer'} | " + " | ".join(cells) + " |")


def print_methods(records: list[dict[str, Any]]) -> None:
    """One line a method: errors of the VAE over as many epochs as all methods were trained for."""
    own = [
        record["settings"] | {"error": record["error"]} for record in records if record["settings"]["model"] == "vae"
    ]
    print("\n| method | " + " | ".join(TABLES) + " |")
    print("|---|" + "---|" * len(TABLES))
    for method, rescale in dict.fromkeys((cell["method"], cell["rescale"]) for cell in own):
        errors = []
        for table in TABLES:
            epochs = min(cell["epochs"] for cell in own if cell["table"] == table)
            wanted = {"table": table, "method": method, "rescale": rescale, "epochs": epochs}
            found = [cell["error"] for cell in own if wanted.items() <= cell.items()]
            errors.append(f"{found[0]:.3f}" if found else "–")
        print(f"| {method}{'' if rescale else ', not rescaled'} | " + " | ".join(errors) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --out of the experiment")
    records = read_records(parser.parse_args().folder)
    shown = [record for record in records if record["settings"]["hidden"] is None]
    print_table(shown)
    print_methods(shown)
    content = json.dumps(records, indent=1, ensure_ascii=False)
    (ROOT / "benchmarks/results/vae_tables.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
