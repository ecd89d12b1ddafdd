"""Reading FHIR: sources, one lenient view of resources, events and times, and the ledger."""
