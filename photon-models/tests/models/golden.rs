//! The public PyTorch reference's numbers, at a tiny size with weights made by the synthetic rule.
//!
//! Recorded in f32: per picture the encoder's output for the first and last crop, the projected
//! features, K of the first and V of the last layer over BOS and image, and the logits of the first
//! token of each prompt. `photon` checks the token sequences that follow.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test's helpers")]
mod run;

use photon_core::{DType, SampleParams, WeightFormat};
use photon_models::{
    Precision, Quant,
    batch::{BatchBuilder, Row},
    config::{Family, TauGelu},
    image::{CropConfig, Limits, Tiling, decode},
};

pub(crate) use run::{BLOCK_SIZE, Golden, PICTURES, Run, download, inputs, query_logits};

/// Largest difference, and how much may be: absolute, and relative to the range of `want`.
#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32], absolute: f32, relative: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let (low, high) =
        want.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (f32::min(l, v), f32::max(h, v)));
    let tolerance = f32::max(absolute, relative * (high - low));
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: differs by {worst}, allowed {tolerance}");
    assert!(got.iter().all(|v| v.is_finite()), "{what}: not finite");
    println!("{what}: largest difference {worst:.2e} (allowed {tolerance:.2e})");
}

fn matches_reference(precision: Precision, absolute: f32, relative: f32) {
    let golden = Golden::open(Family::Moondream2);
    let config = golden.config();
    let (patches, dim) = (config.vision.patches(), config.vision.enc_dim);
    let mut run = Run::new(&config, precision);
    for picture in PICTURES {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/images");
        let bytes = std::fs::read(format!("{dir}/{picture}.png")).unwrap();
        let rgb = decode(&bytes, &Limits::default()).unwrap();
        let mut crops = CropConfig::default().crops(&rgb).unwrap();
        // Crop 0 is recorded; the tiles are resized here, so their pixels differ by up to 2 levels of
        // 255 and what follows from them by more than arithmetic explains.
        let bytes = std::fs::read(format!("{dir}/{picture}.global.webp")).unwrap();
        let global = decode(&bytes, &Limits::default()).unwrap();
        crops.crops[..global.pixels().len()].copy_from_slice(global.pixels());
        let resized = if crops.tiling == Tiling::SINGLE { 1.0 } else { 5.0 };
        let tiling = &golden.json["images"][picture]["tiling"];
        assert_eq!(tiling, &serde_json::json!([crops.tiling.rows, crops.tiling.cols]));

        let close = |what: &str, factor: f32, got: &[f32], want: &[f32]| {
            let what = format!("{picture} {what}");
            close(&what, got, want, factor * absolute, factor * relative);
        };
        let num_crops = crops.tiling.num_crops();
        let features = run.pass(|model, cx, _, image| {
            let size = config.vision.crop_size;
            let mut staged = cx.tensor([num_crops, size, size, 3], DType::U8);
            cx.upload(&mut staged, &crops.crops);
            let features = model.encode_crops(cx, &staged);
            model.project_images(cx, &features, &[crops.tiling], image);
            features
        });
        let features = download(&run.device, &mut run.stream, &features);
        let crop = patches * dim;
        close(
            "global crop",
            1.0,
            &features[..crop],
            &golden.floats(&format!("{picture}.vision_global")),
        );
        let last = golden.floats(&format!("{picture}.vision_last_crop"));
        close("last crop", resized, &features[features.len() - crop..], &last);
        let image = download(&run.device, &mut run.stream, &run.image);
        close("image features", resized, &image, &golden.floats(&format!("{picture}.features")));

        for prompt in ["caption_short", "caption_normal", "caption_long", "query"] {
            let inputs = inputs(&golden.json["images"][picture][prompt]["prompt"], patches);
            // Blocks in a scrambled order, so that only the table can find them.
            let blocks = inputs.len().div_ceil(BLOCK_SIZE) as u32;
            let table: Vec<u32> = (0..blocks).map(|i| 1 + (i * 29 + 7) % 61).collect();
            let row = Row {
                inputs: &inputs,
                draft: &[],
                start: 0,
                block_table: &table,
                images: &[0],
                adapter: None,
                sample: Some(SampleParams::GREEDY),
                mask: None,
            };
            let logits = run.pass(|model, cx, kv, image| {
                let mut batch = BatchBuilder::new(BLOCK_SIZE, config.vision.patches(), [0; 4]);
                batch.push(&row);
                let batch = batch.upload(cx);
                let hidden = model.forward(cx, &batch, Some(image), None, kv);
                [model.logits(cx, &hidden), model.mark_logits(cx, &hidden)]
            });
            let [logits, of_marks] =
                logits.map(|logits| download(&run.device, &mut run.stream, &logits));
            let marks = config.tokenizer.marks().map(|id| logits[id as usize]);
            close("marks", 1.0, &of_marks, &marks);
            let want = golden.floats(&format!("{picture}.{prompt}_logits"));
            close(prompt, 1.0, &logits, &want);
            check_cache(&golden, &mut run, picture, &table, &|what, got, want| {
                close(what, resized, got, want);
            });
        }
    }
}

/// Compares what is named: what was got, what was recorded.
type Close<'a> = dyn Fn(&str, &[f32], &[f32]) + 'a;

/// K of the first and V of the last layer against `[heads, prefix, head_dim]` of the reference, which
/// stores K's rotated pairs side by side: its dim `2j` is our `j`, its `2j + 1` our `j + rotary / 2`.
fn check_cache(golden: &Golden, run: &mut Run, picture: &str, table: &[u32], close: &Close<'_>) {
    let text = golden.config().text;
    let (heads, head_dim, half) = (text.n_kv_heads, text.head_dim(), text.rotary_dims / 2);
    let ordered = |rows: &[f32], pairs: bool| {
        let mut out = Vec::new();
        for head in 0..heads {
            for position in 0..text.prefix_attn {
                let block = table[position / BLOCK_SIZE] as usize;
                let slot = block * BLOCK_SIZE + position % BLOCK_SIZE;
                for dim in 0..head_dim {
                    let ours = match dim {
                        d if pairs && d < 2 * half => d / 2 + (d % 2) * half,
                        d => d,
                    };
                    out.push(rows[(slot * heads + head) * head_dim + ours]);
                }
            }
        }
        out
    };
    let (first, last) = (run.kv.layers().first().unwrap(), run.kv.layers().last().unwrap());
    let k = download(&run.device, &mut run.stream, &first.k);
    let v = download(&run.device, &mut run.stream, &last.v);
    let golden_k = golden.floats(&format!("{picture}.prefix_k_layer0"));
    close("K of layer 0", &ordered(&k, true), &golden_k);
    let golden_v = golden.floats(&format!("{picture}.prefix_v_last"));
    close("V of the last layer", &ordered(&v, false), &golden_v);
}

#[test]
fn every_stage_matches_the_reference_in_f32() {
    matches_reference(Precision::F32, 2e-3, 0.0);
}

#[test]
fn every_stage_matches_the_reference_in_bf16() {
    matches_reference(Precision::mixed(DType::Bf16), 0.0, 3e-2);
}

/// The first token's logits, which see the whole of the text model; the vision model and its weights
/// are those of the other family's golden numbers, where every stage is compared.
fn moondream3_matches_reference(precision: Precision, absolute: f32, relative: f32) {
    let golden = Golden::open(Family::Moondream3);
    for (name, tau_gelu) in [("tanh", TauGelu::Tanh), ("erf", TauGelu::Erf)] {
        let mut config = golden.config();
        config.text.tau_gelu = tau_gelu;
        let mut run = Run::new(&config, precision);
        for picture in PICTURES {
            let prompt = &golden.json["tau_gelu"][name][picture]["query"]["prompt"];
            let logits = query_logits(&mut run, picture, prompt);
            let want = golden.floats(&format!("{name}.{picture}.query_logits"));
            close(&format!("{picture} {name}"), &logits, &want, absolute, relative);
        }
    }
}

/// What quantizing costs, in the range of the logits: printed, and not more than the bounds, which are
/// half as much again as was seen. Random weights have no structure that would forgive anything.
#[test]
fn quantized_logits_are_near_the_reference() {
    let all = |format| Quant { text: Some(format), vision: Some(format), head: None };
    let formats = [
        ("none", Quant::NONE, [0.001; 2]),
        ("int8", all(WeightFormat::Int8), [0.013, 0.036]),
        ("fp8", all(WeightFormat::Fp8), [0.075, 0.25]),
        ("int4-32", all(WeightFormat::Int4 { group: 32 }), [0.22, 0.55]),
        ("int4", all(WeightFormat::Int4 { group: 128 }), [0.22, 0.68]),
    ];
    for (name, quant, bounds) in formats {
        for (family, bound) in [Family::Moondream2, Family::Moondream3].into_iter().zip(bounds) {
            let golden = Golden::open(family);
            let config = golden.config();
            let mut run = Run::new(&config, Precision { quant, ..Precision::F32 });
            let (mut largest, mut squares, mut count) = (0.0f32, 0.0f64, 0);
            for picture in &PICTURES[..2] {
                let record = golden.record("tanh", picture);
                let got = query_logits(&mut run, picture, &record["query"]["prompt"]);
                let want = golden.query_logits("tanh", picture);
                let low = want.iter().copied().fold(f32::MAX, f32::min);
                let high = want.iter().copied().fold(f32::MIN, f32::max);
                for (got, want) in got.iter().zip(&want) {
                    let error = (got - want).abs() / (high - low);
                    largest = largest.max(error);
                    squares += f64::from(error).powi(2);
                    count += 1;
                }
            }
            let rms = (squares / f64::from(count)).sqrt();
            println!("{family} {name}: largest {largest:.4}, rms {rms:.4} of the range of logits");
            assert!(largest <= bound, "{family} {name}: {largest}");
        }
    }
}

#[test]
fn moondream3_matches_the_reference_in_f32() {
    moondream3_matches_reference(Precision::F32, 2e-3, 0.0);
}

#[test]
fn moondream3_matches_the_reference_in_bf16() {
    moondream3_matches_reference(Precision::mixed(DType::Bf16), 0.0, 3e-2);
}
