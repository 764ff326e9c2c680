//! What the whole engine costs with the demo model: `cargo bench -p photon`.
//!
//! Requests go in as an application sends them and come out as answers: their way through the queue,
//! the scheduler, the device and the channel is in the numbers.
#![allow(missing_docs, reason = "criterion's macros")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use photon::{Image, Photon, Request, Skill};

const SIDE: u32 = 378;

/// Grey with a few pixels of its own, so that no two are the same picture.
fn picture(number: u64) -> Image {
    let mut pixels = vec![128; (SIDE * SIDE * 3) as usize];
    pixels[..8].copy_from_slice(&number.to_le_bytes());
    Image::from_rgb(SIDE, SIDE, pixels).expect("a small picture")
}

/// A question whose answer has `tokens` tokens, whatever the model thinks.
fn request(picture: Image, tokens: usize) -> Request {
    let question = "How many objects are there?".to_owned();
    let skill = Skill::Query { question, reasoning: false, spatial_refs: Vec::new() };
    Request { forced_tokens: Some(tokens), ..Request::new(skill, Some(picture)) }
}

fn engine(max_seqs: usize) -> Photon {
    Photon::builder().max_seqs(max_seqs).build().expect("the demo model")
}

/// One request at a time, to its only token.
fn latency(c: &mut Criterion) {
    let mut group = c.benchmark_group("request of one token");
    let photon = engine(1);
    let mut number = 0;
    group.bench_function("about a new picture", |b| {
        b.iter(|| {
            number += 1;
            photon.run(&request(picture(number), 1), &mut |_| {}).expect("an answer")
        });
    });
    let seen = request(picture(0), 1);
    photon.run(&seen, &mut |_| {}).expect("an answer");
    group.bench_function("about a picture seen before", |b| {
        b.iter(|| photon.run(&seen, &mut |_| {}).expect("an answer"));
    });
    group.finish();
}

/// Decode steps of several sequences: the time of long answers less that of short ones.
fn decode(c: &mut Criterion) {
    const TOKENS: usize = 64;
    let mut group = c.benchmark_group("decode step");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for rows in [1, 4, 16, 64] {
        let photon = engine(rows);
        let seen = picture(0);
        photon.run(&request(seen.clone(), 1), &mut |_| {}).expect("an answer");
        let all = |tokens: usize| {
            let begun = Instant::now();
            let submit = |_| photon.submit(request(seen.clone(), tokens)).expect("room");
            let tickets: Vec<_> = (0..rows).map(submit).collect();
            tickets.into_iter().for_each(|ticket| drop(ticket.wait().expect("an answer")));
            begun.elapsed()
        };
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::from_parameter(rows), |b| {
            b.iter_custom(|iters| {
                let one = || all(1 + TOKENS).saturating_sub(all(1)) / TOKENS as u32;
                (0..iters).map(|_| one()).sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, latency, decode);
criterion_main!(benches);
