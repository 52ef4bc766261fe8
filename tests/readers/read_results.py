"""Opens every result of a study with the readers that analysts use: pyarrow, Polars, DuckDB.

usage: read_results.py RESULTS_FOLDER RUNS_FOLDER
"""

import json
import sys
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet


def check_parquet(path: Path) -> int:
    table = pyarrow.parquet.read_table(path, partitioning=None)
    assert all(field.nullable for field in table.schema), f"{path}: a column is not nullable"
    assert b"pipe" in (table.schema.metadata or {}), f"{path}: no `pipe` metadata for pyarrow"
    provenance = json.loads(table.schema.metadata[b"pipe"])
    assert provenance["version"] == 1 and provenance["kind"], path
    images = [field.name for field in table.schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") == 0]
    if images:
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert all(features[name] == {"_type": "Image"} for name in images), f"{path}: images do not show in `datasets`"
    frame = polars.read_parquet(path, hive_partitioning=False)
    assert frame.height == table.num_rows, f"{path}: Polars reads {frame.height} of {table.num_rows} rows"
    rows = duckdb.sql(f"select count(*) from read_parquet('{path}', hive_partitioning=false)").fetchall()[0][0]
    assert rows == table.num_rows, f"{path}: DuckDB reads {rows} of {table.num_rows} rows"
    keys = duckdb.sql(f"select key from parquet_kv_metadata('{path}')").fetchall()
    assert (b"pipe",) in keys, f"{path}: no `pipe` metadata for DuckDB"
    return table.num_rows


def check_arrow(path: Path) -> int:
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    for field in table.schema:
        if isinstance(field.type, pa.BaseExtensionType):
            column = table.column(field.name).combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = column.chunk(0)
            tensor = column.to_numpy_ndarray()
            assert tensor.shape[0] == table.num_rows, path
            assert tuple(tensor.shape[1:]) == tuple(field.type.shape), path
    return table.num_rows


def main() -> None:
    results = Path(sys.argv[1])
    parquet = sorted(results.rglob("*.parquet"))
    arrow = sorted(results.rglob("*.arrow"))
    assert parquet and arrow, f"{results}: {len(parquet)} Parquet and {len(arrow)} Arrow files"
    rows = sum(map(check_parquet, parquet)) + sum(map(check_arrow, arrow))

    # Axes are folders, so they are columns of every stage that has them.
    figures = 0
    for stage in sorted({path.relative_to(results).parts[0] for path in parquet if path.relative_to(results).parts[1] == "metrics"}):
        glob = f"{results}/{stage}/metrics/**/*.parquet"
        figures += duckdb.sql(f"select count(*) from read_parquet('{glob}', hive_partitioning=true)").fetchall()[0][0]
        assert polars.scan_parquet(glob, hive_partitioning=True).collect().height > 0, glob
    assert figures > 0, "no figures"

    # What the first run executed, by stage, with what it took.
    runs = Path(sys.argv[2])
    table = sorted(runs.glob("*/stages.parquet"))[0]
    stages = polars.read_parquet(table)
    executed = stages.filter(polars.col("status") == "executed")
    assert executed.height > 0 and set(stages["status"]) <= {"executed", "hit"}, stages["status"]
    assert executed.filter(polars.col("seconds").is_null() | polars.col("reason").is_null()).is_empty(), table
    counted = duckdb.sql(f"select count(*) from read_parquet('{runs}/*/stages.parquet', union_by_name=true)").fetchall()[0][0]
    assert counted >= stages.height, runs
    print(f"{len(parquet)} Parquet and {len(arrow)} Arrow files, {rows} rows; {figures} figures")


main()
