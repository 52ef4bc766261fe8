"""The examples over published results of the thesis: every tool gives the same answers.

usage: run_examples.py RESULTS_FOLDER
"""

import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
import with_duckdb
import with_pandas
import with_polars

results = sys.argv[1]


def same(left, right):
    if isinstance(left, float) or isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-12)
    return left == right


for question in ("best_models", "corrected_images", "explanations"):
    duckdb_rows = getattr(with_duckdb, question)(results).fetchall()
    polars_rows = getattr(with_polars, question)(results).rows()
    pandas_rows = list(getattr(with_pandas, question)(results).itertuples(index=False, name=None))
    assert duckdb_rows, f"{question}: no rows"
    for tool, rows in (("Polars", polars_rows), ("pandas", pandas_rows)):
        assert len(rows) == len(duckdb_rows), (question, tool, rows, duckdb_rows)
        for one, other in zip(rows, duckdb_rows):
            assert all(same(a, b) for a, b in zip(one, other, strict=True)), (question, tool, one, other)
    print(f"{question}: {len(duckdb_rows)} rows, the same in DuckDB, Polars and pandas")
