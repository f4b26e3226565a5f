"""Write the JSON Schemas of the settings, for editors that complete and check: python -m setting.schema.generate"""

from pathlib import Path
from typing import Any

from experiment.registries import TABLES
from experiment.settings import EvaluateSettings, LatencySettings, TrainSettings
from utils.files import write_json
from utils.sections import Section

FOLDER = Path(__file__).parent
KINDS: dict[str, type[Section]] = {"train": TrainSettings, "evaluate": EvaluateSettings, "latency": LatencySettings}


def schemas() -> dict[str, dict]:
    """The schema of each kind of setting: that of its type, with the names of the tables put in."""
    found = {name: kind.model_json_schema() for name, kind in KINDS.items()}
    for schema in found.values():
        schema["properties"]["$schema"] = {"type": "string", "description": "Where this schema lies, for editors."}
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for section in found["train"]["$defs"].values():
        if "engine" in section["properties"]:
            section["properties"]["engine"]["enum"] = [*TABLES["engines"], "auto"]
    model = found["train"]["$defs"]["ModelSettings"]["properties"]["name"]
    model["anyOf"] = [{"enum": list(TABLES["models"])}, {"type": "string", "pattern": "^[\\w.]+:[\\w.]+$"}]
    for kind in ("evaluate", "latency"):
        engines = found[kind]["properties"]["engines"]
        names = [*TABLES["engines"], *(["auto"] if kind == "evaluate" else [])]
        engines.get("anyOf", [engines])[0]["items"]["enum"] = names  # null stands behind it
    return {name: _without_titles(schema) for name, schema in found.items()}


def _without_titles(schema: Any) -> Any:
    """The schema without pydantic's titles, which are the keys themselves."""
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if key != "title" or not isinstance(value, str)}
        return {key: _without_titles(value) for key, value in kept.items()}
    return [_without_titles(value) for value in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    for name, schema in schemas().items():
        write_json(FOLDER / f"{name}.json", schema)
