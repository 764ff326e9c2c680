//! What the scheduler costs: `cargo bench -p photon-sched`.
//!
//! A decode step of 64 sequences is to take 20 us at most, planned and applied.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use photon_kv::{Namespace, TokenKey};
use photon_sched::{Limits, Output, Scheduler, SeqSpec};

const LIMITS: Limits = Limits {
    max_seqs: 64,
    token_budget: 2048,
    num_blocks: 16384,
    block_size: 16,
    max_waiting: 256,
    watermark_blocks: 64,
    max_spans_per_step: 4,
    max_adapters: 1,
    max_passed: 16,
};

/// A picture and 40 tokens of text.
fn spec(image: u8, max_len: u32) -> SeqSpec {
    let picture = (0..730).map(|i| TokenKey::image(&[image; 32], i));
    let text = (0..40).map(|i| TokenKey::text(1000 + i));
    SeqSpec {
        namespace: Namespace::default(),
        keys: picture.chain(text).collect(),
        spans: std::iter::once(0..730).collect(),
        max_len,
        priority: 0,
        deadline: None,
        cache: true,
    }
}

fn advance(scheduler: &mut Scheduler, outputs: &mut Vec<Output>, next: Option<TokenKey>) -> usize {
    let plan = scheduler.step(0);
    outputs.clear();
    outputs.extend(plan.rows.iter().filter(|r| r.samples).map(|r| Output { seq: r.seq, next }));
    let rows = plan.rows.len();
    scheduler.apply(outputs);
    rows
}

/// 64 sequences on 64 pictures with their prompts computed.
fn decoding(outputs: &mut Vec<Output>) -> Scheduler {
    let mut scheduler = Scheduler::new(LIMITS);
    for image in 0..64 {
        scheduler.add(0, spec(image, 2048)).expect("room");
    }
    while scheduler.stats().running < 64 {
        advance(&mut scheduler, outputs, Some(TokenKey::text(7)));
    }
    advance(&mut scheduler, outputs, Some(TokenKey::text(7)));
    scheduler
}

fn decode(c: &mut Criterion) {
    let mut outputs = Vec::new();
    let mut scheduler = decoding(&mut outputs);
    let mut steps = 0;
    c.bench_function("step and apply, 64 decodes", |b| {
        b.iter(|| {
            if steps == 1200 {
                (scheduler, steps) = (decoding(&mut outputs), 0);
            }
            steps += 1;
            advance(&mut scheduler, &mut outputs, Some(TokenKey::text(7)))
        });
    });
}

/// Adds a sequence of 770 tokens, runs its only step and finishes it.
fn admission(c: &mut Criterion) {
    for (name, image) in [("admission of 770 tokens, hit", 0), ("admission of 770 tokens, miss", 1)]
    {
        let mut outputs = Vec::new();
        let setup = || {
            let mut scheduler = Scheduler::new(LIMITS);
            scheduler.add(0, spec(0, 1024)).expect("room");
            advance(&mut scheduler, &mut Vec::new(), None);
            (scheduler, spec(image, 1024))
        };
        c.bench_function(name, |b| {
            b.iter_batched(
                setup,
                |(mut scheduler, spec)| {
                    scheduler.add(0, spec).expect("room");
                    advance(&mut scheduler, &mut outputs, None);
                    scheduler
                },
                BatchSize::LargeInput,
            );
        });
    }
}

criterion_group!(benches, decode, admission);
criterion_main!(benches);
