"""The service: forecasts over HTTP, as FHIR and as CDS Hooks cards, and a page to look at one record.

`settings` (what is allowed) -> `guard` (hosts, tokens, rates, the access log) -> `app` (the routes) -> `engine` (who
answers what: requests that wait together are scored together) -> `pool`, `worker` (processes) -> `scoring` (requests to
answers) -> `answer` (a document to a forecast) -> `hooks`, `render`.
"""
