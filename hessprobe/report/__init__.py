"""Records of what was done, from which every table, figure and page is made."""

from hessprobe.records.record import (
    SCHEMA,
    MeasuredResult,
    build_record,
    environment,
    read_record,
    result_row,
    to_json,
    write_csv,
    write_record,
)

__all__ = [
    "SCHEMA",
    "MeasuredResult",
    "build_record",
    "environment",
    "read_record",
    "result_row",
    "to_json",
    "write_csv",
    "write_record",
]
