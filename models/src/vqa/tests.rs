//! Models of visual question answering: gradients by finite differences, and what always holds.

mod devices;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::random::Key;
use crate::train::Dropout;
use crate::{Trainable, Weights};

const WORDS: usize = 9;
const ANSWERS: usize = 5;

fn random(shape: &[usize], seed: u64) -> Tensor {
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (1..=count).map(|c| Key(seed).uniform(c) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn tables() -> WordsConfig {
    WordsConfig { width: 3, ..WordsConfig::new(WORDS) }
}

fn question(cell: Cell) -> QuestionConfig {
    QuestionConfig { hidden: 4, reader: Reader::Words { tables: tables(), cell }, mask_padding: false }
}

fn image() -> ImageConfig {
    ImageConfig {
        features: None,
        meta: Some(MetaCnnConfig { filters: 3, blocks: 2, image: 12 }),
        autoencoder: Some(AutoencoderConfig { channels: [3, 2, 2], image: 8, width: 3, reconstruct: true }),
        constant: None,
    }
}

fn mevf(fusion: Fusion) -> MevfConfig {
    MevfConfig { image: image(), question: question(Cell::Lstm), ..MevfConfig::new(ANSWERS, WORDS, fusion) }
}

fn qcr() -> QcrConfig {
    QcrConfig {
        image: image(),
        question: question(Cell::Gru),
        conditioning: tables(),
        ..QcrConfig::new(2, 3, WORDS)
    }
}

fn cross_modal() -> CrossModalConfig {
    CrossModalConfig { width: 8, layers: 2, heads: 2, ..CrossModalConfig::new(ANSWERS, 6, 5) }
}

const BAN: Fusion = Fusion::Ban { glimpses: 2 };
const SAN: Fusion = Fusion::San { stacks: 2 };

fn tokens(rows: &[[u32; 6]]) -> Tensor {
    let flat: Vec<u32> = rows.iter().flatten().copied().collect();
    Tensor::from_vec(flat, (rows.len(), 6), &Device::Cpu).unwrap()
}

const PADDING: u32 = WORDS as u32;
const QUESTIONS: [[u32; 6]; 3] =
    [[0, 1, 2, PADDING, PADDING, PADDING], [8, 7, 6, 5, 4, 3], [2, 2, PADDING, PADDING, PADDING, PADDING]];

fn batch(rows: &[[u32; 6]], types: &[QuestionType]) -> Batch {
    let count = rows.len();
    Batch {
        images: Images {
            meta: Some(random(&[count, 1, 12, 12], 1)),
            autoencoder: Some(AutoencoderInput::Pixels(random(&[count, 1, 8, 8], 2))),
            features: None,
        },
        questions: Questions::tokens(tokens(rows)),
        types: Some(types.to_vec()),
    }
}

fn texts(count: usize) -> Batch {
    let mask: Vec<f32> =
        (0..count).flat_map(|row| (0..4).map(move |place| f32::from(u8::from(place <= row)))).collect();
    let states = TextStates {
        hidden: random(&[count, 4, 6], 3),
        mask: Tensor::from_vec(mask, (count, 4), &Device::Cpu).unwrap(),
        pooled: Tensor::zeros(count, DType::U32, &Device::Cpu).unwrap(),
    };
    Batch {
        images: Images { features: Some(random(&[count, 2, 5], 4)), ..Images::default() },
        questions: Questions { words: None, states: Some(states) },
        types: None,
    }
}

fn targets(count: usize) -> Tensor {
    (random(&[count, ANSWERS], 5).ge(0.7).unwrap()).to_dtype(DType::F32).unwrap()
}

const MIXED: [QuestionType; 3] = [QuestionType::Closed, QuestionType::Open, QuestionType::Closed];

fn doubled(batch: &Batch) -> Batch {
    let wide = |x: &Option<Tensor>| x.as_ref().map(|x| x.to_dtype(DType::F64).unwrap());
    let mut batch = batch.clone();
    batch.images.meta = wide(&batch.images.meta);
    batch.images.features = wide(&batch.images.features);
    if let Some(AutoencoderInput::Pixels(pixels)) = &batch.images.autoencoder {
        batch.images.autoencoder = Some(AutoencoderInput::Pixels(pixels.to_dtype(DType::F64).unwrap()));
    }
    if let Some(states) = &mut batch.questions.states {
        states.hidden = states.hidden.to_dtype(DType::F64).unwrap();
    }
    batch
}

/// Compares the gradients of a model in single precision with those in double, and these with central
/// differences along a random direction of each parameter. The batch norms take the statistics of the batch.
fn check(load: impl Fn(Weights) -> Box<dyn AnswerModel>, batch: &Batch, dropout: Option<&Dropout>) {
    let single = load(Weights::seeded(7, BTreeMap::new(), Trainable::All));
    let tensors = single.parameters().tensors();
    let double = load(Weights::new(tensors, Trainable::All).doubled());
    let wide = doubled(batch);
    let targets = targets(batch.questions.count().unwrap());
    let mode = Mode::Training(dropout);
    let loss = |model: &dyn AnswerModel, batch: &Batch| model.loss(batch, &targets, mode).unwrap().total;
    let ours = loss(single.as_ref(), batch).backward().unwrap();
    let exact = loss(double.as_ref(), &wide).backward().unwrap();
    for (place, (name, variable)) in double.variables().iter().enumerate() {
        let (Some(our), Some(gradient)) = (ours.get(&single.variables()[name]), exact.get(variable)) else {
            // Without reconstruction nothing reaches a decoder.
            panic!("{name} has no gradient");
        };
        let values =
            |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (our, gradient) = (values(our), values(gradient));
        let scale = gradient.iter().fold(0.0f64, |max, g| max.max(g.abs()));
        for (a, b) in our.iter().zip(&gradient) {
            assert!((a - b).abs() <= 1e-4 * scale + 1e-6, "{name}: {a} {b} of {scale}");
        }
        let start = variable.copy().unwrap();
        let mut direction: Vec<f64> =
            values(&random(start.dims(), 100 + place as u64)).into_iter().map(|d| d - 0.5).collect();
        if name.contains("emb.weight") || name.contains("emb_.weight") {
            // The padding's row takes part and never moves.
            let row = PADDING as usize * 3..(PADDING as usize + 1) * 3;
            assert!(gradient[row.clone()].iter().all(|g| *g == 0.0), "{name}");
            direction[row].fill(0.0);
        }
        let along = Tensor::from_slice(&direction, start.shape(), &Device::Cpu).unwrap();
        let h = 1e-6;
        let at = |sign: f64| {
            variable.set(&(&start + (&along * (sign * h)).unwrap()).unwrap()).unwrap();
            loss(double.as_ref(), &wide).to_scalar::<f64>().unwrap()
        };
        let numeric = (at(1.0) - at(-1.0)) / (2.0 * h);
        variable.set(&start).unwrap();
        let analytic: f64 = direction.iter().zip(&gradient).map(|(d, g)| d * g).sum();
        assert!((numeric - analytic).abs() < 1e-5 * analytic.abs().max(1e-2), "{name}: {numeric} {analytic}");
    }
}

#[test]
fn gradients_of_mevf() {
    for fusion in [BAN, SAN] {
        let load = |weights| Box::new(Mevf::load(mevf(fusion), weights).unwrap()) as Box<dyn AnswerModel>;
        check(load, &batch(&QUESTIONS, &MIXED), None);
        check(load, &batch(&QUESTIONS, &MIXED), Some(&Dropout::new(3, 1)));
    }
}

#[test]
fn gradients_of_qcr() {
    let load = |weights| Box::new(Qcr::load(qcr(), weights).unwrap()) as Box<dyn AnswerModel>;
    check(load, &batch(&QUESTIONS, &MIXED), None);
    check(load, &batch(&QUESTIONS, &MIXED), Some(&Dropout::new(3, 1)));
}

#[test]
fn gradients_of_the_cross_modal_transformer() {
    let load = |weights| Box::new(CrossModal::load(cross_modal(), weights).unwrap()) as Box<dyn AnswerModel>;
    check(load, &texts(3), None);
}

/// What training drops is a function of seed and step, and evaluation drops nothing.
#[test]
fn dropout_is_repeatable() {
    let models: [(Box<dyn AnswerModel>, Batch); 4] = [
        (Box::new(Mevf::random(mevf(BAN), 1, BTreeMap::new()).unwrap()), batch(&QUESTIONS, &MIXED)),
        (Box::new(Mevf::random(mevf(SAN), 1, BTreeMap::new()).unwrap()), batch(&QUESTIONS, &MIXED)),
        (Box::new(Qcr::random(qcr(), 1, BTreeMap::new()).unwrap()), batch(&QUESTIONS, &MIXED)),
        (Box::new(CrossModal::random(cross_modal(), 1, BTreeMap::new()).unwrap()), texts(3)),
    ];
    for (model, batch) in models {
        let loss =
            |mode: Mode<'_>| model.loss(&batch, &targets(3), mode).unwrap().total.to_scalar::<f32>().unwrap();
        let [first, again, other] = [(5, 1), (5, 1), (5, 2)]
            .map(|(seed, step)| loss(Mode::Training(Some(&Dropout::new(seed, step)))));
        assert_eq!(first, again);
        assert!(first != other && first != loss(Mode::Training(None)));
    }
}

/// Gradients reach pixels, features and the vectors of words.
#[test]
fn attribution_reaches_both_sides() {
    let models: [Box<dyn AnswerModel>; 3] = [
        Box::new(Mevf::random(mevf(BAN), 1, BTreeMap::new()).unwrap()),
        Box::new(Mevf::random(mevf(SAN), 1, BTreeMap::new()).unwrap()),
        Box::new(Qcr::random(qcr(), 1, BTreeMap::new()).unwrap()),
    ];
    for model in models {
        let mut batch = batch(&QUESTIONS, &MIXED);
        let plain = model.logits(&batch, Mode::Evaluation).unwrap();
        let pixels = Var::from_tensor(batch.images.meta.as_ref().unwrap()).unwrap();
        let words = tokens(&QUESTIONS);
        let embedded = Var::from_tensor(&model.embed_words(&words).unwrap()).unwrap();
        batch.images.meta = Some(pixels.as_tensor().clone());
        batch.questions = Questions::embedded(words, embedded.as_tensor().clone());
        let logits = model.logits(&batch, Mode::Evaluation).unwrap();
        assert_eq!(plain.to_vec2::<f32>().unwrap(), logits.to_vec2::<f32>().unwrap());
        let gradients =
            logits.narrow(1, 0, 1).unwrap().narrow(0, 0, 1).unwrap().sum_all().unwrap().backward().unwrap();
        for variable in [&pixels, &embedded] {
            let greatest = gradients.get(variable).unwrap().abs().unwrap().max_all().unwrap();
            assert!(greatest.to_scalar::<f32>().unwrap() > 0.0);
        }
    }
}

fn finite(x: &Tensor) -> bool {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|value| value.is_finite())
}

#[test]
fn an_empty_branch_is_no_part_of_the_loss() {
    let model = Qcr::random(qcr(), 1, BTreeMap::new()).unwrap();
    for kind in QuestionType::ALL {
        let batch = batch(&QUESTIONS, &[kind; 3]);
        let loss = model.loss(&batch, &targets(3), Mode::Training(None)).unwrap();
        assert!(finite(&loss.total), "{kind:?}");
        assert_eq!(loss.parts.len(), 2);
        let gradients = loss.total.backward().unwrap();
        assert!(model.variables().values().filter_map(|v| gradients.get(v)).all(finite));
        let logits = model.logits(&batch, Mode::Evaluation).unwrap().to_vec2::<f32>().unwrap();
        let closed = kind == QuestionType::Closed;
        assert!(logits.iter().all(|row| row[0].is_finite() == closed && row[2].is_finite() != closed));
    }
    let mut without = batch(&QUESTIONS, &MIXED);
    without.types = None;
    assert!(model.logits(&without, Mode::Evaluation).is_err());
}

#[test]
fn images_alone_and_questions_alone_answer() {
    // A question of nothing but padding.
    let unseen = [[PADDING; 6]];
    for mask_padding in [false, true] {
        for fusion in [BAN, SAN] {
            let mut config = mevf(fusion);
            config.question.mask_padding = mask_padding;
            let model = Mevf::random(config, 1, BTreeMap::new()).unwrap();
            let batch = batch(&unseen, &[QuestionType::Open]);
            let loss = model.loss(&batch, &targets(1), Mode::Training(None)).unwrap();
            assert!(finite(&loss.total) && finite(&model.logits(&batch, Mode::Evaluation).unwrap()));
            let gradients = loss.total.backward().unwrap();
            assert!(model.variables().values().filter_map(|v| gradients.get(v)).all(finite));
        }
    }
    // An image that is a learned vector; and, as it may happen, features of zeros.
    let config = MevfConfig { image: ImageConfig::constant(6), ..mevf(BAN) };
    let model = Mevf::random(config, 1, BTreeMap::new()).unwrap();
    let blind = Batch { questions: Questions::tokens(tokens(&QUESTIONS)), ..Batch::default() };
    assert!(finite(&model.logits(&blind, Mode::Evaluation).unwrap()));
    assert!(model.variables().contains_key("v_constant"));
    let config = MevfConfig {
        image: ImageConfig { features: Some(6), meta: None, autoencoder: None, constant: None },
        ..mevf(BAN)
    };
    let model = Mevf::random(config, 1, BTreeMap::new()).unwrap();
    let zeros = Tensor::zeros((3, 2, 6), DType::F32, &Device::Cpu).unwrap();
    let images = Images { features: Some(zeros), ..Images::default() };
    let batch = Batch { images, ..blind };
    assert!(finite(&model.logits(&batch, Mode::Evaluation).unwrap()));
}

#[test]
fn masked_padding_is_no_part_of_a_question() {
    for fusion in [BAN, SAN] {
        let mut config = mevf(fusion);
        config.question.mask_padding = true;
        let model = Mevf::random(config, 1, BTreeMap::new()).unwrap();
        let logits = |rows: &[[u32; 6]]| {
            model
                .logits(&batch(rows, &[QuestionType::Open]), Mode::Evaluation)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap()
        };
        let mut longer =
            model.logits(&batch(&QUESTIONS[..1], &[QuestionType::Open]), Mode::Evaluation).unwrap();
        // The same three words with more padding behind them.
        let more: Vec<u32> = QUESTIONS[0].iter().copied().chain([PADDING; 4]).collect();
        let mut wider = batch(&QUESTIONS[..1], &[QuestionType::Open]);
        wider.questions = Questions::tokens(Tensor::from_vec(more, (1, 10), &Device::Cpu).unwrap());
        longer = (longer - model.logits(&wider, Mode::Evaluation).unwrap()).unwrap().abs().unwrap();
        assert!(longer.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6);
        assert_ne!(logits(&QUESTIONS[..1]), logits(&QUESTIONS[1..2]));
    }
}

#[test]
fn a_state_is_kept_and_restored() {
    let model = Mevf::random(mevf(BAN), 1, BTreeMap::new()).unwrap();
    let batch = batch(&QUESTIONS, &MIXED);
    let kept: BTreeMap<String, Tensor> = model
        .parameters()
        .tensors()
        .into_iter()
        .map(|(name, tensor)| (name, tensor.copy().unwrap()))
        .collect();
    let before = model.logits(&batch, Mode::Evaluation).unwrap().to_vec2::<f32>().unwrap();
    model.loss(&batch, &targets(3), Mode::Training(None)).unwrap();
    let moved = model.logits(&batch, Mode::Evaluation).unwrap().to_vec2::<f32>().unwrap();
    assert_ne!(before, moved, "a training pass moves the running statistics");
    let count = &model.parameters().buffers()["maml_v_emb.conv1_bn.num_batches_tracked"];
    assert_eq!(count.to_scalar::<i64>().unwrap(), 1);
    model.parameters().restore(&kept).unwrap();
    assert_eq!(model.logits(&batch, Mode::Evaluation).unwrap().to_vec2::<f32>().unwrap(), before);
    let mut short = kept.clone();
    short.remove("classifier.main.0.bias");
    assert!(model.parameters().restore(&short).is_err());
    // A model of the same tensors is the same model.
    let again = Mevf::from_tensors(mevf(BAN), kept, Trainable::Frozen).unwrap();
    assert_eq!(again.logits(&batch, Mode::Evaluation).unwrap().to_vec2::<f32>().unwrap(), before);
    assert!(again.variables().is_empty());
}

#[test]
fn what_is_given_is_not_drawn_and_has_to_fit() {
    let rows = random(&[WORDS + 1, 3], 9);
    let given = BTreeMap::from([("w_emb.emb.weight".to_owned(), rows.clone())]);
    let model = Mevf::random(mevf(BAN), 1, given).unwrap();
    let tensors = model.parameters().tensors();
    assert_eq!(tensors["w_emb.emb.weight"].to_vec2::<f32>().unwrap(), rows.to_vec2::<f32>().unwrap());
    let drawn = tensors["w_emb.emb_.weight"].to_vec2::<f32>().unwrap();
    assert_eq!(drawn[WORDS], [0.0; 3], "the padding begins as zeros");
    // The product of factor and direction is the matrix that was drawn.
    let norm = crate::ops::frobenius_norm(&tensors["classifier.main.0.weight_v"]).unwrap();
    assert_eq!(
        norm.to_scalar::<f32>().unwrap(),
        tensors["classifier.main.0.weight_g"].to_scalar::<f32>().unwrap()
    );
    for wrong in [("w_emb.emb.weight", random(&[WORDS, 3], 9)), ("w_emb.else", random(&[1], 9))] {
        let given = BTreeMap::from([(wrong.0.to_owned(), wrong.1)]);
        assert!(Mevf::random(mevf(BAN), 1, given).is_err(), "{}", wrong.0);
    }
}

/// The numbers of parameters of the published models.
#[test]
fn published_sizes() {
    let count = |model: &dyn AnswerModel| model.variables().values().map(|v| v.elem_count()).sum::<usize>();
    let given = BTreeMap::new;
    let ban = Mevf::random(MevfConfig::new(458, 1177, BAN), 0, given()).unwrap();
    assert_eq!(count(&ban), 19_635_640);
    let san = Mevf::random(MevfConfig::new(458, 1177, SAN), 0, given()).unwrap();
    assert_eq!(count(&san), 13_985_199);
    let qcr = Qcr::random(QcrConfig::new(56, 431, 1177), 0, given()).unwrap();
    assert_eq!(count(&qcr), 40_419_611 + 111_936);
    let types = QuestionTypeClassifier::random(QuestionTypeConfig::new(1177), 0, given()).unwrap();
    let sizes = types.parameters().variables().values().map(|v| v.elem_count());
    assert_eq!(sizes.sum::<usize>(), 7_420_475);
}

#[test]
fn the_type_classifier_learns_the_first_word() {
    use crate::train::{AdamW, AdamWOptions};
    let config = QuestionTypeConfig { words: tables(), widths: [8, 6, 4] };
    let model = QuestionTypeClassifier::random(config, 2, BTreeMap::new()).unwrap();
    let (rows, types) = (tokens(&QUESTIONS), MIXED);
    let options = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(model.parameters().variables(), options, AdamW::matrices_decay);
    for step in 0..150 {
        let dropout = Dropout::new(1, step);
        let loss = model.loss(&rows, &types, Mode::Training(Some(&dropout))).unwrap();
        optimiser.step(&loss.backward().unwrap(), 0.02, 1.0).unwrap();
    }
    assert_eq!(model.classify(&rows).unwrap(), types);
}

#[test]
fn tasks_are_drawn_without_repeats_and_learned_weights_taken_over() {
    let classes = [vec![0, 1, 2, 3], vec![4, 5], vec![6, 7, 8, 9, 10], vec![11, 12, 13, 14]];
    let task = draw_task(&classes, 3, 2, Key(4)).unwrap();
    assert_eq!(task, draw_task(&classes, 3, 2, Key(4)).unwrap());
    let mut images: Vec<usize> = task.support.iter().chain(&task.query).map(|(image, _)| *image).collect();
    images.sort_unstable();
    images.dedup();
    assert_eq!((images.len(), task.support.len()), (12, 6));
    assert!(images.iter().all(|image| !classes[1].contains(image)), "a class of two images is too small");
    for (image, class) in task.support.iter().chain(&task.query) {
        let own = classes.iter().position(|images| images.contains(image));
        let first = classes.iter().position(|images| images.contains(&task.support[2 * *class as usize].0));
        assert_eq!(own, first);
    }
    assert_eq!(draw_task(&classes, 4, 2, Key(4)), None);

    let network = MetaNetwork { filters: 3, blocks: 2, image: 12, ways: 3, head: MetaHead::Mean };
    let weights = network.random(1).unwrap();
    let given = network.state_dict(&weights, "maml_v_emb");
    assert_eq!(given.len(), 8);
    let model = Mevf::random(mevf(BAN), 1, given).unwrap();
    let taken = model.parameters().tensors()["maml_v_emb.conv2.weight"].copy().unwrap();
    let same = (taken - &weights[4]).unwrap().abs().unwrap().max_all().unwrap();
    assert_eq!(same.to_scalar::<f32>().unwrap(), 0.0);
}

#[test]
fn arrays_of_another_network_are_refused() {
    let array = |name: &str, shape: &[usize]| BTreeMap::from([(name.to_owned(), random(shape, 1))]);
    let taken = published::from_tensorflow(array("conv2", &[3, 3, 2, 4]), "m").unwrap();
    assert_eq!(taken["m.conv2.weight"].dims(), [4, 2, 3, 3]);
    assert!(published::from_tensorflow(array("b4", &[7]), "m").unwrap().contains_key("m.conv4.bias"));
    for (name, shape) in [("conv", &[3, 3, 1, 2][..]), ("conv1", &[2]), ("b1", &[1, 2]), ("w5", &[2, 2])] {
        assert!(published::from_tensorflow(array(name, shape), "m").is_err(), "{name}");
    }
}

#[test]
fn sizes_of_nothing_are_refused() {
    let random = |config| Mevf::random(config, 1, BTreeMap::new());
    let mut config = mevf(BAN);
    config.image.meta = Some(MetaCnnConfig { filters: 0, ..MetaCnnConfig::default() });
    assert!(random(config).is_err());
    assert!(random(MevfConfig { answers: 0, ..mevf(BAN) }).is_err());
    assert!(random(mevf(Fusion::Ban { glimpses: 0 })).is_err());
    assert!(random(mevf(Fusion::San { stacks: 0 })).is_err());
    let mut config = mevf(BAN);
    config.image = ImageConfig { features: None, meta: None, autoencoder: None, constant: None };
    assert!(random(config).is_err());
    let mut config = mevf(BAN);
    config.image.autoencoder = Some(AutoencoderConfig { image: 10, ..AutoencoderConfig::default() });
    assert!(random(config).is_err());
    assert!(Qcr::random(QcrConfig { glimpses: 0, ..qcr() }, 1, BTreeMap::new()).is_err());
    assert!(CrossModal::random(CrossModalConfig { heads: 3, ..cross_modal() }, 1, BTreeMap::new()).is_err());
}

#[test]
fn the_second_order_of_meta_learning_is_the_derivative() {
    let network = MetaNetwork { filters: 2, blocks: 1, image: 6, ways: 2, head: MetaHead::Mean };
    let weights: Vec<Tensor> =
        network.random(3).unwrap().iter().map(|w| w.to_dtype(DType::F64).unwrap()).collect();
    let images = |seed| random(&[4, 1, 6, 6], seed).to_dtype(DType::F64).unwrap();
    let classes = Tensor::new(&[0u32, 1, 0, 1], &Device::Cpu).unwrap();
    let task = MetaTask {
        support: images(1),
        support_classes: classes.clone(),
        query: images(2),
        query_classes: classes,
    };
    let inner = InnerSteps { rate: 0.5, steps: 2 };
    let adapted = network.adapt(&weights, &task, inner, Order::Second).unwrap();
    for place in 0..weights.len() {
        let direction =
            (random(weights[place].dims(), 60 + place as u64).to_dtype(DType::F64).unwrap() - 0.5).unwrap();
        let at = |step: f64| -> Result<f64> {
            let mut moved = weights.clone();
            moved[place] = (&moved[place] + (&direction * step)?)?;
            Ok(network.adapt(&moved, &task, inner, Order::First)?.query_loss)
        };
        let numeric = (at(1e-6).unwrap() - at(-1e-6).unwrap()) / 2e-6;
        let analytic =
            (&adapted.gradient[place] * &direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(
            (numeric - analytic).abs() < 1e-5 * analytic.abs().max(1e-2),
            "{place}: {numeric} {analytic}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A question's answer does not depend on what it is asked with, whatever the batch.
    #[test]
    fn rows_do_not_depend_on_their_batch(rows in proptest::collection::vec(
        proptest::array::uniform6(0u32..=PADDING), 1..5), open in any::<bool>())
    {
        let kinds: Vec<QuestionType> =
            (0..rows.len()).map(|row| if (row % 2 == 0) == open { QuestionType::Open } else { QuestionType::Closed }).collect();
        let model = Qcr::random(qcr(), 4, BTreeMap::new()).unwrap();
        let all = batch(&rows, &kinds);
        let logits = model.logits(&all, Mode::Evaluation).unwrap().to_vec2::<f32>().unwrap();
        for (row, expected) in logits.iter().enumerate() {
            let of = |x: &Tensor| x.narrow(0, row, 1).unwrap().contiguous().unwrap();
            let Some(AutoencoderInput::Pixels(pixels)) = &all.images.autoencoder else { unreachable!() };
            let one = Batch {
                images: Images {
                    meta: all.images.meta.as_ref().map(of),
                    autoencoder: Some(AutoencoderInput::Pixels(of(pixels))),
                    features: None,
                },
                questions: Questions::tokens(tokens(&rows[row..=row])),
                types: Some(vec![kinds[row]]),
            };
            let alone = model.logits(&one, Mode::Evaluation).unwrap().to_vec2::<f32>().unwrap();
            for (a, b) in alone[0].iter().zip(expected) {
                prop_assert!(a == b || (a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }
}
