//! What the scheduler pays for the cache.
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use photon_kv::{Namespace, PrefixCache, TokenKey};

/// A picture's prefix and a question that differs by `seed` from its first word on.
fn prompt(picture: u8, seed: u32, len: usize) -> Vec<TokenKey> {
    let text = (0..len.saturating_sub(730) as u32).map(|i| TokenKey::text(seed * 7 + i % 50));
    (0..730).map(|i| TokenKey::image(&[picture; 32], i)).chain(text).collect()
}

/// 500 sequences over 50 pictures.
fn filled() -> PrefixCache {
    let mut cache = PrefixCache::new(40_000, 16);
    for seed in 0..500u32 {
        let (namespace, keys) = (Namespace::default(), prompt((seed % 50) as u8, seed, 1000));
        let (mut lease, _) = cache.acquire(&namespace, &keys);
        cache.copies_done();
        assert!(cache.grow(&mut lease, 1000));
        cache.release(lease, &namespace, &keys);
    }
    cache.check();
    cache
}

fn lookup(c: &mut Criterion) {
    let mut cache = filled();
    let (space, keys) = (Namespace::default(), prompt(7, 257, 1000));
    assert_eq!(cache.peek(&space, &keys), 1000);
    c.bench_function("peek, 1,000 tokens", |b| {
        b.iter(|| {
            black_box(cache.peek(black_box(&space), black_box(&keys)));
        });
    });
    c.bench_function("acquire and drop, 1,000 tokens", |b| {
        b.iter(|| {
            let (lease, hit) = cache.acquire(black_box(&space), black_box(&keys));
            cache.copies_done();
            cache.drop_lease(lease);
            hit
        });
    });
    let other = prompt(7, 9999, 1000);
    assert!((730..740).contains(&cache.peek(&space, &other)));
    c.bench_function("acquire and release, 1,000 tokens of which 730 are the image's", |b| {
        b.iter(|| {
            let (lease, hit) = cache.acquire(black_box(&space), black_box(&other));
            cache.copies_done();
            cache.release(lease, &space, &other[..hit.tokens as usize]);
            hit
        });
    });
    let miss = prompt(200, 257, 1000);
    c.bench_function("acquire and drop, a miss", |b| {
        b.iter(|| {
            let (lease, hit) = cache.acquire(black_box(&space), black_box(&miss));
            cache.drop_lease(lease);
            hit
        });
    });
}

/// 20,000 prompts that begin alike and part in the last key of the first block: as bad as strangers can
/// make it.
fn siblings(c: &mut Criterion) {
    let mut cache = PrefixCache::new(40_000, 16);
    let space = Namespace::default();
    let block = |last| (0..15).chain([last]).map(TokenKey::text).collect::<Vec<_>>();
    for last in 0..20_000 {
        let (mut lease, _) = cache.acquire(&space, &[]);
        assert!(cache.grow(&mut lease, 16));
        cache.release(lease, &space, &block(2 * last));
    }
    let keys = block(20_001);
    assert_eq!(cache.peek(&space, &keys), 15);
    c.bench_function("peek, 20,000 siblings", |b| {
        b.iter(|| {
            black_box(cache.peek(black_box(&space), black_box(&keys)));
        });
    });
}

fn turnover(c: &mut Criterion) {
    let pictures: Vec<_> = (0..=255).map(|picture| prompt(picture, 257, 1000)).collect();
    let space = Namespace::default();
    let mut small = PrefixCache::new(200, 16);
    let mut picture = 0u8;
    c.bench_function("a new picture in a full pool: acquire, grow, release", |b| {
        b.iter(|| {
            picture = picture.wrapping_add(1);
            let keys = &pictures[usize::from(picture)];
            let (mut lease, _) = small.acquire(&space, keys);
            small.copies_done();
            assert!(small.grow(&mut lease, 1000));
            small.release(lease, &space, keys);
        });
    });
    let mut empty = PrefixCache::new(200, 16);
    c.bench_function("the pool: 63 blocks taken and given back", |b| {
        b.iter(|| {
            let (mut lease, _) = empty.acquire(&space, &[]);
            assert!(empty.grow(&mut lease, 1000));
            empty.drop_lease(lease);
        });
    });
}

criterion_group!(prefix_cache, lookup, siblings, turnover);
criterion_main!(prefix_cache);
