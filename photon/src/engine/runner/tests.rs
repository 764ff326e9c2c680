//! Which matrices a recorded step multiplies by.
use photon_core::SampleParams;
use photon_cpu::{Cpu, CpuOptions, Tape};
use photon_models::{Moondream, Precision, batch::Row, config::TokenConfig, prompt::Input};

use super::{Heads, Runner};
use crate::{EngineOptions, Model, engine::Sizes, model::Parts};

/// A step of one token per row, each drawn under these lists; the operations of the graph made for it.
fn operations(runner: &mut Runner<Tape>, rows: &[SampleParams], heads: Heads) -> String {
    runner.graphs.clear();
    let block_tables: Vec<_> = (1..=rows.len() as u32).map(|block| [block]).collect();
    let rows = rows.iter().zip(&block_tables).map(|(&sample, block_table)| Row {
        inputs: &[Input::Coord(0.25)],
        draft: &[],
        start: 0,
        block_table,
        images: &[],
        adapter: None,
        sample: Some(sample),
        mask: None,
    });
    let step = runner.step(rows, heads).unwrap();
    runner.finish(step, &mut Vec::new()).unwrap();
    format!("{:?}", runner.graphs.values().collect::<Vec<_>>())
}

#[test]
fn the_head_over_all_ids_runs_where_words_are_drawn() {
    // No other layer of this one has as many rows as the head.
    let Parts { config, checkpoint, .. } = Model::Demo3.open().unwrap();
    let tape = Tape::new(Cpu::open(CpuOptions::default()).unwrap());
    let precision = Precision::F32;
    let model = Moondream::load(&tape, &checkpoint, &config, precision, &mut |_, _| ()).unwrap();
    let options = EngineOptions { max_seqs: Some(4), ..EngineOptions::default() };
    let sizes = Sizes::choose(&tape, &config, precision, &options).unwrap();
    let mut runner = Runner::new(tape, model, sizes.runner).unwrap();

    let TokenConfig { eos_id, coord_id, size_id, .. } = config.tokenizer;
    let only = |ids: [u32; 2]| {
        let [a, b] = ids.map(|id| id as i32);
        SampleParams { allowed: [a, b, -1, -1], ..SampleParams::GREEDY }
    };
    let (x, size) = (only([coord_id, eos_id]), only([size_id, size_id]));
    let word = SampleParams::GREEDY;
    let head = |n: usize| format!("linear {n}x{}", config.text.dim);
    let [all, marks] = [head(config.text.vocab_size), head(4)];
    let mut count = |rows: &[SampleParams], heads| {
        let operations = operations(&mut runner, rows, heads);
        [&all, &marks].map(|head| operations.matches(head.as_str()).count())
    };
    let none = Heads::default();
    assert_eq!(count(&[x, size, x], Heads { coord: true, size: true }), [0, 1]);
    assert_eq!(count(&[size], Heads { size: true, ..none }), [0, 1]);
    assert_eq!(count(&[word], none), [1, 0]);
    assert_eq!(count(&[x, word], Heads { coord: true, ..none }), [1, 1]);
    // A list that is not of marks.
    assert_eq!(count(&[only([coord_id, 77])], none), [1, 0]);
}
