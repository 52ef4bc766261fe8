//! Models that answer are the same wherever their parameters lie.

use super::*;
use crate::device::DeviceName;

type Load = fn(Weights) -> Box<dyn AnswerModel>;

/// The logits, the loss, and its gradients by the pixels or features and by every parameter.
fn results(model: &dyn AnswerModel, batch: &Batch) -> Vec<(String, Vec<f32>)> {
    let values = |x: &Tensor| {
        let here = x.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
        here.to_vec1::<f32>().unwrap()
    };
    let mut batch = batch.clone();
    let seen = if batch.images.meta.is_some() { &mut batch.images.meta } else { &mut batch.images.features };
    let pixels = Var::from_tensor(seen.as_ref().unwrap()).unwrap();
    *seen = Some(pixels.as_tensor().clone());
    let logits = model.logits(&batch, Mode::Evaluation).unwrap();
    let dropout = Dropout::new(3, 1);
    let loss = model.loss(&batch, &targets(3), Mode::Training(Some(&dropout))).unwrap();
    assert!(logits.device().is_cpu() && loss.total.device().is_cpu());
    assert!(loss.parts.iter().all(|(_, part)| part.device().is_cpu()));
    let gradients = loss.total.backward().unwrap();
    let finite = |x: f32| if x.is_finite() { x } else { 0.0 };
    let logits: Vec<f32> = values(&logits).into_iter().map(finite).collect();
    let mut all = vec![("logits".to_owned(), logits), ("loss".to_owned(), values(&loss.total))];
    all.push(("pixels".to_owned(), values(gradients.get(&pixels).unwrap())));
    for (name, variable) in model.variables() {
        let gradient = gradients.get(variable).unwrap();
        assert!(gradient.device().same_device(variable.device()), "{name}");
        all.push((name.clone(), values(gradient)));
    }
    all
}

#[test]
fn a_model_on_a_device_is_that_of_the_cpu() {
    let models: [(Load, Batch); 4] = [
        (|weights| Box::new(Mevf::load(mevf(BAN), weights).unwrap()), batch(&QUESTIONS, &MIXED)),
        (|weights| Box::new(Mevf::load(mevf(SAN), weights).unwrap()), batch(&QUESTIONS, &MIXED)),
        (|weights| Box::new(Qcr::load(qcr(), weights).unwrap()), batch(&QUESTIONS, &MIXED)),
        (|weights| Box::new(CrossModal::load(cross_modal(), weights).unwrap()), texts(3)),
    ];
    for name in ["cpu", "cuda:0", "metal"] {
        let device = match name.parse::<DeviceName>().unwrap().open() {
            Ok(device) => device,
            Err(error) => {
                println!("SKIPPED {error}");
                continue;
            }
        };
        for (load, batch) in &models {
            let own = load(Weights::seeded(7, BTreeMap::new(), Trainable::All));
            let moved = |(name, tensor): (String, Tensor)| (name, tensor.to_device(&device).unwrap());
            let tensors = own.parameters().tensors().into_iter().map(moved).collect();
            let there = OnDevice::new(load(Weights::new(tensors, Trainable::All)), device.clone());
            assert!(there.parameters().device().same_device(&device));
            let exact = results(own.as_ref(), batch);
            let greatest = |values: &[f32]| values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            let largest = exact.iter().map(|(_, values)| greatest(values)).fold(0.0, f32::max);
            for ((name, found), (_, exact)) in results(&there, batch).iter().zip(&exact) {
                let scale = greatest(exact).max(1e-3 * largest);
                assert_eq!(found.len(), exact.len(), "{name}");
                for (a, b) in found.iter().zip(exact) {
                    assert!((a - b).abs() <= 1e-4 * scale, "{name} on {device:?}: {a} {b} of {scale}");
                }
            }
        }
    }
}
