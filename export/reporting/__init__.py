"""The parity report: what an export measured, told to people and to programs.

Order: evidence <- words <- record, table, markdown, figures <- page <- report.
"""
