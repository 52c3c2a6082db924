"""The model card of an export: what was trained, on what, and what was measured."""

from configs.schema import SourceConfig, TrainConfig
from train.measuring.results import Results, measure_of
from train.model.what_trains import PartRow, format_table
from train.saving.run_folder import environment


def model_card(config: TrainConfig, table: list[PartRow], results: Results) -> str:
    """Return the README.md of an export."""
    sources = "\n".join(
        f"- `{name}`: {_source(source, config.data.languages)}"
        for name, source in config.data.sources.items()
    )
    measured = "\n".join(
        f"| {group} | {measure_of(name).title} | {measure_of(name).form.format(value)} |"
        for group, result in results.items()
        for name, value in result.means().items()
    )
    pipeline = "text-generation" if config.model.kind.value == "text_lm" else "image-text-to-text"
    packages = ", ".join(f"{k} {v}" for k, v in environment()["packages"].items() if v)
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
tags: [visiongraft]
---
# {config.stage.name}

Trained with visiongraft, stage `{config.stage.name}`, seed {config.seed}.

```
{format_table(table)}
```

Data:

{sources}

Measured on held-out rows at the end (mean over languages):

| group | measure | value |
|---|---|---|
{measured}

Versions: {packages}.
"""


def _source(source: SourceConfig, languages: list[str]) -> str:
    """Return what a source is and in which languages, as far as the config says."""
    if source.path is None:  # shipped
        return f"{source.kind.value}, in {', '.join(source.languages or languages)}"
    told = f"{source.kind.value} ({source.path})"
    if source.language_field is not None:
        return f"{told}, languages by its column `{source.language_field}`"
    return f"{told}, in {source.language}" if source.language is not None else told
