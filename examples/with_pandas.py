"""Three questions to the results of pipelines/thesis.toml, in pandas (pip install pandas pyarrow).

    python examples/with_pandas.py results/thesis
"""

import sys

import pandas as pd


def best_models(results):
    """AUROC of every head on the chest test set, with its interval; the axes of the study are columns."""
    metrics = pd.read_parquet(f"{results}/classified/metrics")
    overall = metrics[
        (metrics["metric"] == "auroc") & metrics["class"].isna() & metrics["subgroup"].isna()
    ].astype({"model": str, "mode": str})
    columns = ["model", "mode", "value", "ci_low", "ci_high"]
    return overall[columns].sort_values(["value", "model", "mode"], ascending=[False, True, True])


def corrected_images(results):
    """How many test images one model gets right and the other wrong: predictions are kept, one row per image."""
    predictions = pd.read_parquet(
        f"{results}/classified/predictions", columns=["id", "correct", "model"], filters=[("mode", "==", "full")]
    ).astype({"model": str, "correct": bool})
    table = predictions.pivot(index="id", columns="model", values="correct")
    return pd.DataFrame(
        {
            "only_medical": [int((table["medical"] & ~table["general"]).sum())],
            "only_general": [int((table["general"] & ~table["medical"]).sum())],
            "images": [len(table)],
        }
    )


def explanations(results):
    """How often the largest value of a map lies inside the lesion, for trained and for random weights."""
    scores = pd.read_parquet(
        f"{results}/scored/scores",
        filters=[("metric", "==", "pointing_game"), ("model", "==", "medical"), ("reference", "==", "mean")],
    ).astype({"explanation": str, "weights": str, "method": str})
    own = scores[scores["method"] == scores["explanation"]]
    groups = own.groupby(["explanation", "weights"], as_index=False)
    return groups.agg(hits=("value", "mean"), maps=("value", "count"))


if __name__ == "__main__":
    for question in (best_models, corrected_images, explanations):
        print(question.__doc__)
        print(question(sys.argv[1]).to_string(index=False))
