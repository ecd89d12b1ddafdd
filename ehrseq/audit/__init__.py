"""Audits: what a forecast rests on, found by fitting again, and guards that are tried out."""

from __future__ import annotations

from ehrseq.audit.designs import evaluate_designs as evaluate_designs
from ehrseq.audit.run import audit_export as audit_export
from ehrseq.audit.run import run_audits as run_audits
