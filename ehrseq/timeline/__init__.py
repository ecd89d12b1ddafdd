"""Patient timelines: the column contract, building them from FHIR, and the MEDS dataset on disk."""
