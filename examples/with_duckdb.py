"""Three questions to the results of pipelines/thesis.toml, in DuckDB (pip install duckdb).

    python examples/with_duckdb.py results/thesis
"""

import sys

import duckdb


def best_models(results):
    """AUROC of every head on the chest test set, with its interval; the axes of the study are columns."""
    return duckdb.sql(f"""
        SELECT model, mode, value, ci_low, ci_high
        FROM read_parquet('{results}/classified/metrics/**/*.parquet', hive_partitioning = true)
        WHERE metric = 'auroc' AND class IS NULL AND subgroup IS NULL
        ORDER BY value DESC, model, mode
    """)


def corrected_images(results):
    """How many test images one model gets right and the other wrong: predictions are kept, one row per image."""
    return duckdb.sql(f"""
        WITH predictions AS (
            FROM read_parquet('{results}/classified/predictions/**/*.parquet', hive_partitioning = true)
            WHERE mode = 'full'
        )
        SELECT
            count(*) FILTER (medical.correct AND NOT general.correct) AS only_medical,
            count(*) FILTER (general.correct AND NOT medical.correct) AS only_general,
            count(*) AS images
        FROM predictions AS medical JOIN predictions AS general USING (id)
        WHERE medical.model = 'medical' AND general.model = 'general'
    """)


def explanations(results):
    """How often the largest value of a map lies inside the lesion, for trained and for random weights."""
    return duckdb.sql(f"""
        SELECT explanation, weights, avg(value) AS hits, count(value) AS maps
        FROM read_parquet('{results}/scored/scores/**/*.parquet', hive_partitioning = true)
        WHERE metric = 'pointing_game' AND method = explanation AND model = 'medical' AND reference = 'mean'
        GROUP BY explanation, weights
        ORDER BY explanation, weights
    """)


if __name__ == "__main__":
    for question in (best_models, corrected_images, explanations):
        print(question.__doc__)
        question(sys.argv[1]).show()
