"""What the OpenAPI document says of each route."""

from __future__ import annotations

from typing import Any

from ehrseq.serve.problems import FHIR_JSON, operation_outcome

DESCRIPTION = "Forecasts of outcomes from FHIR records. Research use: not a medical device."
AT = "The prediction time: a date (its end), a time, or `now`. Default: each patient's latest record."
INCLUDE = "What to send beside the forecasts: `why` (reasons), `curves` (risk over time), `timeline` (events)."
FORMAT = "`json` or `fhir` (a Bundle of RiskAssessments). Default: what `Accept` names, else JSON."
PARAMETERS = {"at", "include", "format", "service"}  # that an error may name

PATIENT = {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1958-04-02"}
CONDITION = {
    "resourceType": "Condition", "id": "c1", "subject": {"reference": "Patient/p1"}, "recordedDate": "2019-11-30",
    "code": {"coding": [{"system": "http://snomed.info/sct", "code": "38341003", "display": "Hypertension"}]},
}  # fmt: skip
OBSERVATION = {
    "resourceType": "Observation", "id": "o1", "status": "final", "subject": {"reference": "Patient/p1"},
    "effectiveDateTime": "2020-02-03T09:30:00Z", "valueQuantity": {"value": 6.1, "unit": "%"},
    "code": {"coding": [{"system": "http://loinc.org", "code": "4548-4", "display": "Haemoglobin A1c"}]},
}  # fmt: skip
BUNDLE = {
    "resourceType": "Bundle", "type": "collection",
    "entry": [{"resource": resource} for resource in (PATIENT, CONDITION, OBSERVATION)],
}  # fmt: skip
REQUEST = {
    "hook": "patient-view",
    "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
    "context": {"userId": "Practitioner/example", "patientId": "p1"},
    "prefetch": {
        "patient": PATIENT,
        "conditions": {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": CONDITION}]},
        "observations": {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": OBSERVATION}]},
    },
}  # fmt: skip
RESOURCE = {"type": "object", "required": ["resourceType"], "properties": {"resourceType": {"type": "string"}}}
NUMBER = {"type": ["number", "null"]}
TEXT = {"type": ["string", "null"]}
FORECASTS = {
    "type": "object",
    "required": ["model", "forecasts", "skipped", "unseen_codes", "records", "notes"],
    "properties": {
        "model": {"type": "object", "properties": {"version": {"type": "string"}, "branch": {"type": "string"}}},
        "forecasts": {"type": "array", "items": {
            "type": "object",
            "required": ["patient", "prediction_time", "seen_in_training", "risk", "labs"],
            "properties": {
                "patient": {"type": "string"},
                "prediction_time": {"type": "string"},
                "seen_in_training": {"type": "boolean"},
                "risk": {"type": "array", "items": {"type": "object", "properties": {
                    "outcome": {"type": "string"}, "horizon": TEXT, "horizon_days": {"type": "number"},
                    "probability": {"type": "number", "minimum": 0, "maximum": 1}, "competing": {"type": "number"},
                    "event_free": {"type": "number"}, "lower": NUMBER, "upper": NUMBER,
                    "extrapolated": {"type": "boolean"},
                }}},
                "labs": {"type": "array", "items": {"type": "object"}},
                "reasons": {"type": "array", "items": {"type": "object"}},
                "curves": {"type": "array", "items": {"type": "object"}},
            },
        }},
        "skipped": {"type": "array", "items": {"type": "object", "properties": {
            "patient": {"type": "string"}, "prediction_time": TEXT, "outcome": TEXT, "reason": {"type": "string"},
        }}},
        "unseen_codes": {"type": "array", "items": {"type": "object"}},
        "records": {"type": "object"},
        "notes": {"type": "array", "items": {"type": "string"}},
        "timeline": {"type": "array", "items": {"type": "object"}},
    },
}  # fmt: skip
OUTCOME_SCHEMA = {
    "type": "object", "required": ["resourceType", "issue"],
    "properties": {"resourceType": {"const": "OperationOutcome"}, "issue": {"type": "array", "minItems": 1}},
}  # fmt: skip
CARDS = {
    "type": "object", "required": ["cards"],
    "properties": {"cards": {"type": "array", "items": {
        "type": "object", "required": ["summary", "indicator", "source"],
        "properties": {
            "uuid": {"type": "string"}, "summary": {"type": "string", "maxLength": 140}, "detail": {"type": "string"},
            "indicator": {"enum": ["info", "warning", "critical"]},
            "source": {"type": "object", "required": ["label"], "properties": {"label": {"type": "string"}}},
        },
    }}},
}  # fmt: skip
ANSWERED = {
    400: "The body is no JSON, or nested too deeply, or not packed as it says.",
    408: "The body did not come in time.", 413: "The body is too large.",
    415: "The body is of another type, or packed in another way.",
    422: "There is no patient to forecast for, or a parameter has another value.",
    503: "The model is not ready, there was no answer in time, or the process that was to answer ended.",
}  # fmt: skip
ALWAYS = {
    400: "Two headers of a kind that may stand once.", 401: "No token, or one that is not accepted.",
    421: "Another host was asked for.", 429: "Too many requests, or too many that wait: see Retry-After.",
}  # fmt: skip


def _refusals(told: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "description": text,
            "content": {FHIR_JSON: {"schema": OUTCOME_SCHEMA, "example": operation_outcome(status, text)}},
        }
        for status, text in told.items()
    }


def _json(description: str, schema: dict[str, Any], **more: Any) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {"application/json": {"schema": schema, **more}}}}


def _body(schema: dict[str, Any], examples: dict[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    named = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {k: {"schema": schema, "examples": named} for k in kinds}}}


_MADE = _json("Forecasts, or what there is of them.", FORECASTS)
_MADE[200]["content"][FHIR_JSON] = {"schema": RESOURCE}
FORECAST: dict[str, Any] = {
    "summary": "Forecast from a Bundle, or a list of Bundles or resources",
    "responses": _MADE | _refusals(ALWAYS | ANSWERED),
    "openapi_extra": _body(
        {"oneOf": [RESOURCE, {"type": "array", "items": RESOURCE}]},
        {"bundle": BUNDLE, "resources": [PATIENT, CONDITION, OBSERVATION]}, ("application/json", FHIR_JSON),
    ),
}  # fmt: skip
MODEL: dict[str, Any] = {
    "summary": "The model: outcomes, horizons, versions, card",
    "responses": _json("Facts about the model.", {"type": "object"}) | _refusals(ALWAYS),
}
HEALTH: dict[str, Any] = {
    "summary": "Whether the service runs",
    "responses": _json("It does.", {"type": "object"}, example={"status": "alive"}) | _refusals({421: ALWAYS[421]}),
}
READY: dict[str, Any] = {
    "summary": "Whether the service can answer",
    "responses": _json("It can.", {"type": "object"}, example={"status": "ready"})
    | _refusals({421: ALWAYS[421], 503: "Not yet, or no worker runs."}),
}
DISCOVERY: dict[str, Any] = {
    "summary": "CDS Hooks: the services",
    "responses": _json("The services.", {"type": "object", "required": ["services"]}) | _refusals(ALWAYS),
}
HOOK: dict[str, Any] = {
    "summary": "CDS Hooks: cards of a patient",
    "responses": _json("Cards; none where nothing can be forecast.", CARDS)
    | _refusals(ALWAYS | ANSWERED | {404: "No such service.", 412: "What a forecast needs is not in the prefetch."}),
    "openapi_extra": _body(
        {
            "type": "object", "required": ["hook", "hookInstance", "context"],
            "properties": {
                "hook": {"type": "string"}, "hookInstance": {"type": "string"},
                "context": {"type": "object", "required": ["patientId"],
                            "properties": {"patientId": {"type": "string"}, "userId": {"type": "string"}}},
                "prefetch": {"type": "object"},
            },
        },
        {"patient-view": REQUEST}, ("application/json",),
    ),
}  # fmt: skip
