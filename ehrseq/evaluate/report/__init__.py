"""The report of an evaluation: one page, its numbers as JSON, a model card, and two checklists.

Every number of the page comes from `report.json`: the page is made from that content and nothing else.
"""
