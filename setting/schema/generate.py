"""Write the JSON Schemas of the settings, for editors that complete and check: python -m setting.schema.generate"""

from pathlib import Path

from setting.names import TABLES
from utils.config import EvaluateSettings, LatencySettings, TrainSettings
from utils.files import write_json

FOLDER = Path(__file__).parent
KINDS = {"train": TrainSettings, "evaluate": EvaluateSettings, "latency": LatencySettings}


def schemas() -> dict[str, dict]:
    """The schema of each kind of setting: that of its type, with the names of the tables put in."""
    found = {name: kind.model_json_schema() for name, kind in KINDS.items()}
    for schema in found.values():
        schema["properties"]["$schema"] = {"type": "string", "description": "Where this schema lies, for editors."}
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    sections = found["train"]["$defs"]
    _names(sections["DataSettings"], "name", TABLES["datasets"])
    _names(sections["QuantSettings"], "method", TABLES["methods"])
    _names(sections["QuantSettings"], "engine", TABLES["engines"])
    _names(sections["OptimSettings"], "name", TABLES["optimizers"])
    model = sections["ModelSettings"]["properties"]["name"]
    model["anyOf"] = [{"enum": list(TABLES["models"])}, {"type": "string", "pattern": "^[\\w.]+:[\\w.]+$"}]
    for kind in ("evaluate", "latency"):
        found[kind]["properties"]["engines"]["items"]["enum"] = list(TABLES["engines"])
    return found


def _names(section: dict, key: str, table: dict) -> None:
    section["properties"][key]["enum"] = list(table)


if __name__ == "__main__":
    for name, schema in schemas().items():
        write_json(FOLDER / f"{name}.json", schema)
