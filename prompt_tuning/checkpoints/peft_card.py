"""What people read in the folder of an exported adapter: where it belongs and how to load it."""

import json

from prompt_tuning.checkpoints.prompt_file import PromptFile

README, PROVENANCE = "README.md", "prompt_card.json"
_CARD = """---
{front_matter}
---

# {title}

{facts}

Loaded with PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

base = AutoModelForSeq2SeqLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
inputs = AutoTokenizer.from_pretrained({base})(["..."], padding=True, return_tensors="pt")
# Always pass the mask: without one, the model attends to padding.
tokens = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
```

`prompt_card.json` says the same to programs.
"""
_TITLES = {
    "prompt": "A prompt of {length} vectors",
    "prefix": "A prefix of {length} keys and values for the decoder",
    "ia3": "Scales (IA3)",
}


def readme(file: PromptFile, base_name: str | None) -> str:
    """Returns the model card, with the front matter that the Hub reads."""
    # JSON texts and lists are YAML.
    front = {"library_name": "peft", "tags": ["prompt-tuning", f"method:{file.method}"]}
    front |= {} if base_name is None else {"base_model": base_name}
    facts = {
        "Base model": base_name,
        "Base hash": file.base,
        "Task": file.task,
        "Global step": file.step,
        **{f"Metric {name}": value for name, value in file.metrics.items()},
    }
    return _CARD.format(
        front_matter="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        title=_TITLES[file.method].format(length=file.length),
        facts="\n".join(
            f"- {name}: {_one_line(value)}" for name, value in facts.items() if value is not None
        )
        or "Nothing else is known about it.",
        base=json.dumps(base_name or "BASE_MODEL"),
    )


def provenance(file: PromptFile, base_name: str | None) -> str:
    """Returns everything that a prompt file says beside its numbers, as JSON."""
    known = {
        "base": file.base,
        "base_name": base_name,
        "config": file.config,
        "details": dict(file.details),
        "length": file.length,
        "method": file.method,
        "metrics": dict(file.metrics),
        "step": file.step,
        "task": file.task,
    }
    return json.dumps(known, indent=2, sort_keys=True) + "\n"


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
