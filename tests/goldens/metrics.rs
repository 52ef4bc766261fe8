//! Metrics, tests and losses against scikit-learn, SciPy, PyTorch and the MedMNIST evaluator.

mod floors;

use std::collections::BTreeSet;

use candle_core::{Device, Tensor, Var};
use pipe_models::train::logistic;
use pipe_models::train::loss::{self, Hinge};
use pipe_stages::statistics::{
    ClassifierScores, Confusion, Disagreement, Disparity, GroupRates, Method, Rank, Scale, Task, Zeros,
    additive_projection, delong, holm, kendall_tau_b, mcnemar, mean_rank, median_rank, perceptual_score,
    recall, relative_share, shapley, softmax, spearman, text_share, threshold_at_specificity, wilcoxon,
};
use serde_json::Value as Json;

use crate::harness;
use crate::json::JsonGolden;

/// Everything but iterative solvers.
const EXACT: f64 = 1e-9;
/// Coefficients of logistic regression.
const SOLVER: f64 = 1e-5;

fn open(file: &str) -> Option<JsonGolden> {
    let folder = harness::data("goldens-metrics")?;
    Some(JsonGolden::open(&folder, file))
}

fn numbers(json: &Json) -> Vec<f64> {
    json.as_array().expect("a list").iter().map(|value| value.as_f64().expect("a number")).collect()
}

fn matrix(json: &Json) -> Vec<Vec<f64>> {
    json.as_array().expect("a list of rows").iter().map(numbers).collect()
}

fn integers(json: &Json) -> Vec<usize> {
    numbers(json).into_iter().map(|value| value as usize).collect()
}

fn booleans(json: &Json) -> Vec<bool> {
    numbers(json).into_iter().map(|value| value == 1.0).collect()
}

/// Labels as stored: a number or a list per sample.
fn targets(json: &Json) -> Vec<Vec<i64>> {
    let row = |row: &Json| match row {
        Json::Array(bits) => bits.iter().map(|bit| bit.as_i64().expect("a whole number")).collect(),
        number => vec![number.as_i64().expect("a whole number")],
    };
    json.as_array().expect("a list").iter().map(row).collect()
}

/// Scores as stored: a number or a list per sample.
fn scores(json: &Json) -> Vec<Vec<f64>> {
    let row = |row: &Json| match row {
        Json::Array(_) => numbers(row),
        number => vec![number.as_f64().expect("a number")],
    };
    json.as_array().expect("a list").iter().map(row).collect()
}

fn ones(count: usize) -> Vec<f64> {
    vec![1.0; count]
}

#[test]
fn medmnist_evaluator_delong_mcnemar_and_logistic_regression() {
    let Some(golden) = open("classification.json") else { return };
    for case in 0..golden.len("/medmnist_evaluator") {
        let at = |key: &str| format!("/medmnist_evaluator/{case}/{key}");
        golden.input(&at("name"));
        let task = golden.input(&at("task"));
        let scored = ClassifierScores::new(
            Task::parse(task.as_str().expect("a task")),
            scores(&golden.input(&at("scores"))),
            targets(&golden.input(&at("labels"))),
        );
        let weights = ones(scored.len());
        golden.compare(&at("auc"), scored.auroc(&weights), EXACT);
        golden.compare(&at("acc"), scored.accuracy(&weights), EXACT);
    }

    let [a, b] = ["/delong/score_a", "/delong/score_b"].map(|key| numbers(&golden.input(key)));
    let labels = booleans(&golden.input("/delong/labels"));
    let test = delong([&a, &b], &labels).expect("both classes occur");
    golden.compare_all("/delong/auc", &test.auroc, EXACT);
    golden.compare_all("/delong/cov", &test.covariance.concat(), EXACT);
    golden.compare("/delong/z", test.z, EXACT);
    golden.compare("/delong/p", test.p, EXACT);

    for case in 0..golden.len("/mcnemar") {
        let at = |key: &str| format!("/mcnemar/{case}/{key}");
        let count = |key: &str| golden.input(&at(key)).as_u64().expect("a count");
        let test = mcnemar(count("b"), count("c"));
        golden.compare(&at("p_exact"), Some(test.exact), EXACT);
        golden.compare(&at("p_chi2_cc"), Some(test.corrected), EXACT);
    }

    let x = matrix(&golden.input("/logreg/X"));
    let y = integers(&golden.input("/logreg/y"));
    let c = golden.input("/logreg/C").as_f64().expect("a number");
    let classes = y.iter().max().expect("labels") + 1;
    let width = x[0].len();
    // The published features have four decimals; the stages' are f32.
    let features: Vec<f32> = x.concat().iter().map(|value| *value as f32).collect();
    let samples = logistic::Samples { features: &features, width, labels: &y, classes };
    let model = logistic::fit(samples, c).expect("it converges");
    golden.compare_all("/logreg/coef", &model.weight, SOLVER);
    golden.compare_all("/logreg/intercept", &model.bias, SOLVER);
    let rows = golden.len("/logreg/proba");
    let logits = model.logits(&features[..rows * width], width);
    let probabilities: Vec<Vec<f64>> = logits.iter().map(|logits| softmax(logits)).collect();
    golden.compare_all("/logreg/proba", &probabilities.concat(), SOLVER);
    golden.input("/logreg/note");
    golden.input("/versions");
    golden.input("/seed");
    golden.finish();
}

#[test]
fn further_figures_of_classifiers() {
    let Some(golden) = open("classification_extra.json") else { return };
    for key in ["/seed", "/versions", "/tolerance", "/definitions"] {
        golden.input(key);
    }
    for case in 0..golden.len("/multi_class") {
        let at = |key: &str| format!("/multi_class/{case}/{key}");
        golden.input(&at("name"));
        golden.input(&at("kind"));
        let classes = golden.input(&at("classes")).as_u64().expect("a count") as usize;
        let scored = ClassifierScores::new(
            Task::MultiClass,
            matrix(&golden.input(&at("probs"))),
            targets(&golden.input(&at("labels"))),
        );
        let weights = ones(scored.len());
        calibration(&golden, &scored, &at);
        golden.compare(&at("accuracy"), scored.accuracy(&weights), EXACT);
        golden.compare(&at("brier"), scored.brier(&weights), EXACT);
        let precision: Vec<Option<f64>> =
            (0..classes).map(|class| scored.class_average_precision(class, &weights)).collect();
        golden.compare_optional(&at("average_precision"), &precision, EXACT);
        golden.compare(&at("average_precision_macro"), scored.average_precision(&weights), EXACT);
        let confusion = scored.confusion(&weights).expect("one class a sample");
        golden.compare(&at("balanced_accuracy"), confusion.balanced_accuracy(), EXACT);
        golden.compare(&at("macro_f1"), confusion.macro_f1(), EXACT);
        golden.compare(&at("kappa_quadratic"), confusion.kappa(Disagreement::Quadratic), EXACT);
        golden.compare(&at("mcc"), confusion.matthews(), EXACT);
        let counts: Vec<f64> =
            (0..classes * classes).map(|cell| confusion.count(cell / classes, cell % classes)).collect();
        golden.compare_all(&at("confusion"), &counts, 0.0);
    }
    for case in 0..golden.len("/binary") {
        let at = |key: &str| format!("/binary/{case}/{key}");
        golden.input(&at("name"));
        let scored = ClassifierScores::new(
            Task::Binary,
            scores(&golden.input(&at("scores"))),
            targets(&golden.input(&at("labels"))),
        );
        let weights = ones(scored.len());
        calibration(&golden, &scored, &at);
        golden.compare(&at("auroc"), scored.auroc(&weights), EXACT);
        golden.compare(&at("average_precision"), scored.average_precision(&weights), EXACT);
        golden.compare(&at("brier"), scored.brier(&weights), EXACT);
        golden.compare(&at("accuracy_half"), scored.accuracy(&weights), EXACT);
        let confusion = scored.confusion(&weights).expect("one class a sample");
        golden.compare(&at("balanced_accuracy_half"), confusion.balanced_accuracy(), EXACT);
        golden.compare(&at("macro_f1_half"), confusion.macro_f1(), EXACT);

        let validation = ClassifierScores::new(
            Task::Binary,
            scores(&golden.input(&at("val_scores"))),
            targets(&golden.input(&at("val_labels"))),
        );
        let (val_scores, val_positive) = validation.column(0);
        let threshold = threshold_at_specificity(&val_scores, &val_positive, 0.9).expect("negatives");
        let finite = threshold.is_finite().then_some(threshold);
        golden.compare(&at("sens_at_spec90/threshold"), finite, EXACT);
        for (prefix, set) in [("val", &validation), ("test", &scored)] {
            let (sensitivity, fall_out) = set.rates_at(threshold, &ones(set.len()));
            golden.compare(&at(&format!("sens_at_spec90/{prefix}_sensitivity")), sensitivity, EXACT);
            let specificity = fall_out.map(|share| 1.0 - share);
            golden.compare(&at(&format!("sens_at_spec90/{prefix}_specificity")), specificity, EXACT);
        }
    }

    let scored = ClassifierScores::new(
        Task::MultiLabel,
        matrix(&golden.input("/multi_label/scores")),
        targets(&golden.input("/multi_label/labels")),
    );
    let weights = ones(scored.len());
    let precision: Vec<Option<f64>> =
        scored.scored().map(|label| scored.class_average_precision(label, &weights)).collect();
    golden.compare_optional("/multi_label/average_precision", &precision, EXACT);
    golden.compare("/multi_label/macro", scored.average_precision(&weights), EXACT);
    golden.compare("/multi_label/brier_mean_over_labels", scored.brier(&weights), EXACT);
    subgroups(&golden);
    golden.finish();
}

fn calibration(golden: &JsonGolden, scored: &ClassifierScores, at: &dyn Fn(&str) -> String) {
    let calibration = scored.calibration(&ones(scored.len())).expect("one class a sample");
    golden.compare(&at("ece15"), calibration.expected_error(), EXACT);
    golden.compare(&at("mce15"), calibration.greatest_error(), EXACT);
    let bins: Vec<Option<f64>> =
        calibration.bins.iter().flat_map(|bin| [Some(bin.count), bin.confidence, bin.accuracy]).collect();
    golden.compare_optional(&at("bins"), &bins, EXACT);
}

fn subgroups(golden: &JsonGolden) {
    golden.input("/subgroups/definition");
    let scored = ClassifierScores::new(
        Task::Binary,
        scores(&golden.input("/subgroups/scores")),
        targets(&golden.input("/subgroups/labels")),
    );
    let group = golden.input("/subgroups/group");
    let group: Vec<&str> = group.as_array().expect("a list").iter().filter_map(Json::as_str).collect();
    let names: BTreeSet<&str> = group.iter().copied().collect();
    let weights = ones(scored.len());
    let mut groups = Vec::new();
    let mut undefined = Vec::new();
    for name in names {
        let belongs: Vec<bool> = group.iter().map(|other| *other == name).collect();
        let rates = GroupRates::of(&scored, &belongs, &weights);
        let at = |key: &str| format!("/subgroups/per_group/{name}/{key}");
        let positives = (0..scored.len()).filter(|row| belongs[*row] && scored.is_positive(*row, 0)).count();
        golden.compare(&at("n"), Some(rates.n as f64), 0.0);
        golden.compare(&at("positives"), Some(positives as f64), 0.0);
        golden.compare(&at("auroc"), rates.auroc, EXACT);
        golden.compare(&at("accuracy"), rates.accuracy, EXACT);
        golden.compare(&at("tpr"), rates.true_positive_rate, EXACT);
        golden.compare(&at("fpr"), rates.false_positive_rate, EXACT);
        golden.compare(&at("positive_rate"), rates.positive_rate, EXACT);
        if rates.auroc.is_none() {
            undefined.push(name);
        }
        groups.push(rates);
    }
    let disparity = Disparity::between(&groups);
    golden.compare("/subgroups/overall_auroc", scored.auroc(&weights), EXACT);
    golden.compare("/subgroups/worst_group_auroc", disparity.worst_auroc, EXACT);
    golden.compare("/subgroups/auroc_gap", disparity.auroc_gap, EXACT);
    golden.compare("/subgroups/equalised_odds_difference", disparity.equalised_odds, EXACT);
    golden.compare("/subgroups/equal_opportunity_difference", disparity.equal_opportunity, EXACT);
    golden.compare("/subgroups/demographic_parity_difference", disparity.demographic_parity, EXACT);
    golden.compare_text("/subgroups/undefined_auroc_groups", &undefined);
}

#[test]
fn recall_and_losses_of_retrieval() {
    let Some(golden) = open("retrieval.json") else { return };
    let images = matrix(&golden.input("/images"));
    let captions = matrix(&golden.input("/captions"));
    let owner = integers(&golden.input("/cap2img"));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let unit = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
        let scaled = |row: &Vec<f64>| row.iter().map(|value| value / product(row, row).sqrt()).collect();
        rows.iter().map(scaled).collect()
    };
    let (images, captions) = (unit(&images), unit(&captions));
    let by_image: Vec<usize> = (0..images.len())
        .map(|image| {
            let scores: Vec<f64> = captions.iter().map(|caption| product(caption, &images[image])).collect();
            let own: Vec<usize> = (0..owner.len()).filter(|caption| owner[*caption] == image).collect();
            Rank::of_best(&scores, &own, |_| true).expect("every image has a caption").rank
        })
        .collect();
    let by_caption: Vec<usize> = (0..captions.len())
        .map(|caption| {
            let scores: Vec<f64> = images.iter().map(|image| product(image, &captions[caption])).collect();
            Rank::of(&scores, owner[caption], |_| true).rank
        })
        .collect();
    for (name, ranks) in [("i2t", &by_image), ("t2i", &by_caption)] {
        let plain: Vec<f64> = ranks.iter().map(|rank| *rank as f64).collect();
        golden.compare_all(&format!("/rank_{name}"), &plain, 0.0);
        for k in golden.keys(&format!("/{name}")) {
            let share = recall(ranks, k.parse().expect("a number"), &ones(ranks.len()));
            golden.compare(&format!("/{name}/{k}"), share.map(|share| 100.0 * share), EXACT);
        }
        golden.compare(&format!("/medr_{name}"), median_rank(ranks), EXACT);
        golden.compare(&format!("/meanr_{name}"), mean_rank(ranks), EXACT);
    }
    losses(&golden);
    golden.finish();
}

fn losses(golden: &JsonGolden) {
    let tensor = |key: &str| {
        let rows = matrix(&golden.input(key));
        let shape = (rows.len(), rows[0].len());
        Var::from_tensor(&Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap()).unwrap()
    };
    let (images, captions) = (tensor("/losses/images"), tensor("/losses/captions"));
    let margin = golden.input("/losses/margin").as_f64().expect("a number");
    let scale = golden.input("/losses/clip_loss/scale").as_f64().expect("a number");
    let similarities = || images.as_tensor().matmul(&captions.as_tensor().t().unwrap()).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let check = |name: &str, loss: Tensor| {
        golden.compare(&format!("/losses/{name}/loss"), Some(loss.to_scalar::<f64>().unwrap()), EXACT);
        let gradients = loss.backward().unwrap();
        for (side, variable) in [("images", &images), ("captions", &captions)] {
            let gradient = values(gradients.get(variable).expect("a gradient"));
            golden.compare_all(&format!("/losses/{name}/grad_{side}"), &gradient, EXACT);
        }
    };
    for (name, kind) in [("max_hinge", Hinge::Max), ("sum_hinge", Hinge::Sum), ("mean_hinge", Hinge::Mean)] {
        check(name, loss::hinge(&similarities(), margin, kind, &[]).unwrap());
    }
    check("clip_loss", loss::info_nce(&(similarities() * scale).unwrap(), &[]).unwrap());
    let (caption_term, image_term) = loss::discriminability(&similarities(), margin).unwrap();
    golden.compare_all("/losses/per_item_max/caption_term", &values(&caption_term), EXACT);
    golden.compare_all("/losses/per_item_max/image_term", &values(&image_term), EXACT);
}

#[test]
fn tests_correlations_and_shapley_values() {
    let Some(golden) = open("statistics.json") else { return };
    for key in ["/seed", "/versions", "/tolerance", "/definitions"] {
        golden.input(key);
    }
    for case in 0..golden.len("/holm") {
        let p = golden.input(&format!("/holm/{case}/p"));
        let p: Vec<Option<f64>> = p.as_array().expect("a list").iter().map(Json::as_f64).collect();
        golden.compare_optional(&format!("/holm/{case}/adjusted"), &holm(&p), EXACT);
    }
    for case in 0..golden.len("/wilcoxon") {
        golden.input(&format!("/wilcoxon/{case}/name"));
        let [x, y] = ["x", "y"].map(|side| numbers(&golden.input(&format!("/wilcoxon/{case}/{side}"))));
        for result in 0..golden.len(&format!("/wilcoxon/{case}/results")) {
            let at = |key: &str| format!("/wilcoxon/{case}/results/{result}/{key}");
            let zeros = match golden.input(&at("zero_method")).as_str() {
                Some("wilcox") => Zeros::Dropped,
                Some("pratt") => Zeros::Ranked,
                other => panic!("unknown zero method {other:?}"),
            };
            let continuity = golden.input(&at("correction")).as_bool().expect("a truth value");
            let method = match golden.input(&at("method")).as_str() {
                Some("exact") => Method::Exact,
                Some("approx") => Method::Normal { continuity },
                other => panic!("unknown method {other:?}"),
            };
            let test = wilcoxon(&x, &y, zeros, method);
            golden.compare(&at("statistic"), Some(test.statistic), EXACT);
            golden.compare(&at("p"), test.p, EXACT);
        }
    }
    for case in 0..golden.len("/spearman") {
        let at = |key: &str| format!("/spearman/{case}/{key}");
        golden.input(&at("name"));
        let [x, y] = ["x", "y"].map(|side| numbers(&golden.input(&at(side))));
        let correlation = spearman(&x, &y);
        golden.compare(&at("rho"), correlation.map(|correlation| correlation.value), EXACT);
        golden.compare(&at("p"), correlation.and_then(|correlation| correlation.p), EXACT);
        if golden.has(&at("kendall_tau_b")) {
            golden.compare(&at("kendall_tau_b"), kendall_tau_b(&x, &y), EXACT);
        }
    }
    let [a, b] = ["a", "b"].map(|rater| integers(&golden.input(&format!("/kappa/{rater}"))));
    let classes = golden.input("/kappa/classes").as_u64().expect("a count") as usize;
    let confusion = Confusion::new(classes, a.iter().zip(&b).map(|(a, b)| (*a, *b, 1.0)));
    golden.compare("/kappa/unweighted", confusion.kappa(Disagreement::Equal), EXACT);
    golden.compare("/kappa/linear", confusion.kappa(Disagreement::Linear), EXACT);
    golden.compare("/kappa/quadratic", confusion.kappa(Disagreement::Quadratic), EXACT);
    games(&golden);
    golden.finish();
}

/// The games of `mm_shap`: values from their formulas, and Shapley values from these.
fn games(golden: &JsonGolden) {
    let at = |key: &str| format!("/mm_shap/{key}");
    golden.input(&at("coalition_order"));
    let count = |key: &str| golden.input(&at(key)).as_u64().expect("a count") as usize;
    let text = count("text_players");
    let players = text + count("image_players");
    golden.input(&at("bias"));
    for key in ["additive/weights", "interacting/weights", "interacting/A"] {
        golden.input(&at(key));
    }
    for name in ["additive", "interacting", "nonlinear"] {
        golden.input(&at(&format!("{name}/formula")));
        let values = numbers(&golden.input(&at(&format!("{name}/values"))));
        let phi = shapley(&values).expect("all coalitions");
        assert_eq!(phi.len(), players);
        golden.compare_all(&at(&format!("{name}/phi")), &phi, EXACT);
        golden.compare(&at(&format!("{name}/t_share")), text_share(&phi, text), EXACT);
    }
    golden.input(&at("all_zero/note"));
    let nothing = shapley(&vec![0.0; 1 << players]).expect("all coalitions");
    golden.compare_all(&at("all_zero/phi"), &nothing, EXACT);
    golden.compare(&at("all_zero/t_share"), text_share(&nothing, text), EXACT);
}

#[test]
fn additive_projection_and_shares() {
    let Some(golden) = open("bias.json") else { return };
    let cube: Vec<Vec<Vec<f64>>> =
        golden.input("/logits_qv").as_array().expect("a cube").iter().map(matrix).collect();
    let projected: Vec<f64> = additive_projection(&cube).concat().concat();
    golden.compare_all("/emap", &projected, EXACT);
    golden.input("/note");
    let number = |key: &str| golden.input(key).as_f64().expect("a number");
    let share = relative_share(number("/rho/A"), number("/rho/A_Q"), number("/rho/A_0"));
    golden.compare("/rho/rho", share, EXACT);
    let (full, permuted) = (number("/perceptual/A"), number("/perceptual/A_perm"));
    let of_task = Scale::Task { floor: number("/perceptual/A_0") };
    golden.compare("/perceptual/model_norm", perceptual_score(full, permuted, Scale::Model), EXACT);
    golden.compare("/perceptual/task_norm", perceptual_score(full, permuted, of_task), EXACT);
    golden.finish();
}
