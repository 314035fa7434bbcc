"""Write the tables of models into README.md and docs/pages/models.md, from the registry.

With `--check` nothing is written, and the exit status is 1 where a file does not hold what would be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from poster_zoo import ModelInfo, list_models, model_info
from poster_zoo.weights.entry import Weights

ROOT = Path(__file__).resolve().parent.parent
LEGEND = (
    '"bundled": inside the package. "convert …": get that file from its authors and let `poster-zoo convert` turn it\n'
    "into verified safetensors. **Our organisation on the Hub has no weights yet**, so nothing comes from there today."
)


def source(entry: Weights) -> str:
    """Return where weights come from today."""
    if entry.bundled:
        return "bundled"
    file = f"`{entry.upstream_file}`" if entry.upstream_file else "a checkpoint"
    return f"convert {file}" if entry.upstream_layout else "none yet"


def number(value: float | None, none: str) -> str:
    """Return a rate with four digits, or the word for its absence."""
    return none if value is None else f"{value:.4f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def models_table(models: Sequence[ModelInfo]) -> str:
    """Return the table of all models, and what its words mean."""
    rows = [
        [
            f"`{model.name}`",
            model.weights.shown_size,
            model.weights.answers,
            f"{model.parameters / 1e6:.2f} M",
            f"{model.macs / 1e9:.2f}",
            source(model.weights),
        ]
        for model in models
    ]
    return f"{table(['model', 'input', 'answers', 'parameters', 'GMACs', 'weights'], rows)}\n\n{LEGEND}"


def metrics_table(models: Sequence[ModelInfo]) -> str:
    """Return the table of every number that the entries know."""
    rows = [
        [
            f"`{model.name}`",
            metric.dataset,
            metric.name,
            number(metric.published, "–"),
            number(metric.measured, "not measured"),
            f"`{metric.command}`" if metric.command else "–",
        ]
        for model in models
        for metric in model.weights.metrics
    ]
    return table(["model", "data", "quantity", "published", "measured", "command"], rows)


def fill(text: str, tables: dict[str, str]) -> str:
    """Return `text` with each table between its two comments, `<!-- name -->` and `<!-- /name -->`."""
    for name, content in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start in text:
            before, _, rest = text.partition(start)
            _, _, after = rest.partition(end)
            text = f"{before}{start}\n{content}\n\n{end}{after}"
    return text


def main(check: bool) -> int:
    """Write the tables, or with `check` only compare; return the exit status."""
    models = [model_info(name) for name in list_models()]
    tables = {"models": models_table(models), "metrics": metrics_table(models)}
    stale = []
    for path in (ROOT / "README.md", ROOT / "docs" / "pages" / "models.md"):
        text = path.read_text(encoding="utf-8")
        filled = fill(text, tables)
        if filled != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(filled, encoding="utf-8")
    if stale and check:
        print(f"Stale tables in {', '.join(stale)}: `make tables` writes them anew.", file=sys.stderr)
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
