"""Three questions to the results of pipelines/thesis.toml, in Polars (pip install polars).

    python examples/with_polars.py results/thesis
"""

import sys

import polars as pl


def best_models(results):
    """AUROC of every head on the chest test set, with its interval; the axes of the study are columns."""
    return (
        pl.scan_parquet(f"{results}/classified/metrics/**/*.parquet", hive_partitioning=True)
        .filter(pl.col("metric") == "auroc", pl.col("class").is_null(), pl.col("subgroup").is_null())
        .select("model", "mode", "value", "ci_low", "ci_high")
        .sort("value", "model", "mode", descending=[True, False, False])
        .collect()
    )


def corrected_images(results):
    """How many test images one model gets right and the other wrong: predictions are kept, one row per image."""
    predictions = pl.scan_parquet(
        f"{results}/classified/predictions/**/*.parquet", hive_partitioning=True
    ).filter(pl.col("mode") == "full")

    def of(model):
        return predictions.filter(pl.col("model") == model).select("id", pl.col("correct").alias(model))

    medical, general = pl.col("medical"), pl.col("general")
    return (
        of("medical")
        .join(of("general"), on="id")
        .select(
            (medical & ~general).sum().alias("only_medical"),
            (general & ~medical).sum().alias("only_general"),
            pl.len().alias("images"),
        )
        .collect()
    )


def explanations(results):
    """How often the largest value of a map lies inside the lesion, for trained and for random weights."""
    return (
        pl.scan_parquet(f"{results}/scored/scores/**/*.parquet", hive_partitioning=True)
        .filter(
            pl.col("metric") == "pointing_game",
            pl.col("method").cast(pl.String) == pl.col("explanation"),
            pl.col("model") == "medical",
            pl.col("reference") == "mean",
        )
        .group_by("explanation", "weights")
        .agg(pl.col("value").mean().alias("hits"), pl.col("value").count().alias("maps"))
        .sort("explanation", "weights")
        .collect()
    )


if __name__ == "__main__":
    for question in (best_models, corrected_images, explanations):
        print(question.__doc__)
        print(question(sys.argv[1]))
