"""Ask a running service (`ehrseq serve MODEL`) for a card about one patient, as a record system would: CDS Hooks 2.0.

python examples/cds_hooks_call.py EXPORT sim-0000001 http://127.0.0.1:8000 [TOKEN]
"""

import json
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

KINDS = {
    "Condition": "conditions", "Observation": "observations", "MedicationRequest": "medications",
    "Procedure": "procedures", "Immunization": "immunizations", "Encounter": "encounters",
}  # fmt: skip


def hook_request(export: Path, patient: str) -> dict[str, Any]:
    """What the record system sends: the hook, the patient, and the prefetched records as search results."""
    # a search without results is sent as such: what is left out counts as not known
    prefetch: dict[str, Any] = {name: {"resourceType": "Bundle", "type": "searchset"} for name in KINDS.values()}
    for file in sorted(export.glob("*.ndjson")):
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.stem == "Patient":
            prefetch["patient"] = next(r for r in records if r["id"] == patient)
        elif file.stem in KINDS:
            mine = [r for r in records if r.get("subject", {}).get("reference") == f"Patient/{patient}"]
            bundle = {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": r} for r in mine]}
            prefetch[KINDS[file.stem]] = bundle
    context = {"patientId": patient, "userId": "Practitioner/example"}
    return {"hook": "patient-view", "hookInstance": str(uuid.uuid4()), "context": context, "prefetch": prefetch}


def post(url: str, body: dict[str, Any], token: str | None) -> dict[str, Any]:
    """The answer to a request in JSON."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with urlopen(Request(url, json.dumps(body).encode(), headers)) as response:
        return json.load(response)


def run(export: str, patient: str, service: str, token: str | None = None) -> None:
    """Discover the service, call it, and print its cards."""
    with urlopen(f"{service}/cds-services") as response:
        identity = json.load(response)["services"][0]["id"]
    for card in post(f"{service}/cds-services/{identity}", hook_request(Path(export), patient), token)["cards"]:
        print(card["summary"], card.get("detail", ""), sep="\n")


if __name__ == "__main__":
    run(*sys.argv[1:])
