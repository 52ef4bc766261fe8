//! Which images are explained.

use super::*;

#[test]
fn filters_choose_images_in_the_order_of_the_table() {
    let study = Study::new();
    let base = params(Method::InputXGradient, Baseline::Zero);
    let all = study.maps(&base);
    let labels = crate::labels::Labels::read(&study.artifacts["labels"]).unwrap();
    let name = |label: &[i64]| labels.description.classes[label[0] as usize].clone();
    let ids: Vec<String> = all.text("id").into_iter().flatten().collect();
    let truths: Vec<String> = labels.of(&ids).unwrap().iter().map(|label| name(label)).collect();
    let predicted: Vec<String> = all.text("target").into_iter().flatten().collect();
    let chosen =
        |params: &Params| -> Vec<String> { study.maps(params).text("id").into_iter().flatten().collect() };
    let where_ = |keep: &dyn Fn(usize) -> bool| -> Vec<String> {
        (0..ids.len()).filter(|row| keep(*row)).map(|row| ids[row].clone()).collect()
    };
    assert_eq!(chosen(&Params { limit: Some(3), ..base.clone() }), ids[..3]);
    let classes = vec![truths[2].clone(), truths[0].clone()];
    assert_eq!(
        chosen(&Params { classes: classes.clone(), ..base.clone() }),
        where_(&|row| classes.contains(&truths[row]))
    );
    let right = where_(&|row| truths[row] == predicted[row]);
    assert!(!right.is_empty() && right.len() < ids.len(), "some are right, some are wrong");
    assert_eq!(chosen(&Params { only_correct: true, ..base.clone() }), right);
    let own = study.maps(&Params { target: "true".to_owned(), ..base.clone() });
    assert_eq!(own.text("target").into_iter().flatten().collect::<Vec<_>>(), truths);
    let named = study.maps(&Params { target: truths[0].clone(), ..base });
    assert!(named.text("target").iter().all(|target| target.as_ref() == Some(&truths[0])));
}

#[test]
fn filters_that_nothing_passes_give_a_file_without_rows() {
    let study = Study::new();
    let host = Host::default();
    let params = Params { splits: vec!["val".to_owned()], ..params(Method::Gradient, Baseline::Zero) };
    let artifact = study.attribute(&params, &host).unwrap();
    let batch = read_file(&artifact.single_file().unwrap().location).unwrap();
    assert_eq!((batch.num_rows(), batch.num_columns()), (0, 14));
    assert!(host.lines.lock().unwrap().iter().any(|line| line.starts_with("warning: no image")));
}
