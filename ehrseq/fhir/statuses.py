"""Which statuses, intents and flags mean that a record gives no event."""

from __future__ import annotations

from typing import Any

from ehrseq.fhir.concepts import BAD_STATUS, Statuses
from ehrseq.fhir.ledger import Reason

# An order that was later withdrawn was still given when it was: `cancelled`, `revoked` and `stopped` say how it ended.
ORDER_STATUS: Statuses = {
    "entered-in-error": Reason.ENTERED_IN_ERROR,
    "draft": Reason.PLANNED,
    "proposed": Reason.PLANNED,  # DSTU2, as is `planned`
    "planned": Reason.PLANNED,
}
ORDER_INTENT: Statuses = dict.fromkeys(("proposal", "plan", "option"), Reason.PLANNED)
PLAN_INTENT: Statuses = dict.fromkeys(("proposal", "option"), Reason.PLANNED)
GOAL_STATUS: Statuses = {
    "entered-in-error": Reason.ENTERED_IN_ERROR,
    "proposed": Reason.PLANNED,
    "planned": Reason.PLANNED,
    "cancelled": Reason.NOT_DONE,
    "rejected": Reason.NOT_DONE,
}
RESULT_STATUS: Statuses = BAD_STATUS | {"registered": Reason.NOT_DONE}
DOCUMENT_STATUS: Statuses = BAD_STATUS | {"registered": Reason.NOT_DONE}
EVENT_STATUS: Statuses = BAD_STATUS | {"preparation": Reason.PLANNED, "abandoned": Reason.NOT_DONE}
DISPENSE_STATUS: Statuses = EVENT_STATUS | {"declined": Reason.NOT_DONE}
PRODUCT_STATUS: Statuses = EVENT_STATUS | {
    "in-progress": Reason.PLANNED,
    "allocated": Reason.PLANNED,
    "unfulfilled": Reason.NOT_DONE,
    "returned": Reason.NOT_DONE,
}
USE_STATUS: Statuses = BAD_STATUS | {
    "intended": Reason.PLANNED,
    "not-taken": Reason.NOT_DONE,
    "not-used": Reason.NOT_DONE,
}
BILL_STATUS: Statuses = BAD_STATUS | {"draft": Reason.PLANNED, "planned": Reason.PLANNED}
BILL_USE: Statuses = dict.fromkeys(
    ("preauthorization", "predetermination", "proposed", "exploratory"), Reason.PLANNED
)  # the last two: STU3
CHARGE_STATUS: Statuses = BAD_STATUS | {"planned": Reason.PLANNED, "aborted": Reason.NOT_DONE}


def order_fault(r: Any) -> Reason | None:
    """Why an order gives no event: not meant as one, an error, or an order not to do something."""
    reason = ORDER_STATUS.get(r.status) or ORDER_INTENT.get(r.intent)
    if reason is None and r.do_not_perform:
        return Reason.NOT_DONE
    return reason
