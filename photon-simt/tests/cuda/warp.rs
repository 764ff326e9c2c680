//! Functions of warps and blocks against their definitions, for every seed alike.
use crate::support::{buffer, bytes, pseudo, seeds, words};
use photon_simt::{Memory, cuda};

const THREADS: usize = 96;

/// What `lanes` in `kernels/lanes.cu` writes, by the CUDA manual, in its order.
fn defined(x: &[u32], width: usize, by: usize) -> Vec<Vec<u32>> {
    let warp = |i: usize| &x[i / 32 * 32..i / 32 * 32 + 32];
    let lane = |i: usize| i % 32;
    let per = |f: &dyn Fn(usize) -> u32| (0..x.len()).map(f).collect::<Vec<u32>>();
    let segment = |i: usize| lane(i) & !(width - 1);
    let get = |i: usize, from: usize| warp(i)[from];
    let mask = |i: usize, f: &dyn Fn(u32) -> bool| {
        warp(i).iter().enumerate().map(|(l, &x)| u32::from(f(x)) << l).sum::<u32>()
    };
    let count = |f: &dyn Fn(u32) -> bool| x.iter().filter(|&&x| f(x)).count() as u32;
    let half = |i: usize| &warp(i)[lane(i) / 16 * 16..lane(i) / 16 * 16 + 16];
    let sum = |x: &[u32]| x.iter().fold(0_u32, |a, &b| a.wrapping_add(b));
    let all_same = |i: usize| warp(i).iter().all(|&x| x >> 8 == warp(i)[0] >> 8);
    vec![
        per(&|i| get(i, segment(i) + by % width)),
        per(&|i| get(i, if lane(i) % width >= by { lane(i) - by } else { lane(i) })),
        per(&|i| get(i, if lane(i) % width + by < width { lane(i) + by } else { lane(i) })),
        per(&|i| get(i, if lane(i) ^ by < segment(i) + width { lane(i) ^ by } else { lane(i) })),
        per(&|i| mask(i, &|x| x & 1 != 0)),
        per(&|i| u32::from(warp(i).iter().any(|x| x & 2 != 0))),
        per(&|i| u32::from(warp(i).iter().all(|x| x & 3 != 0))),
        per(&|i| mask(i, &|y| y & 7 == x[i] & 7)),
        per(&|i| sum(warp(i))),
        per(&|i| *warp(i).iter().min().unwrap()),
        per(&|i| *warp(i).iter().max_by_key(|&&x| x as i32).unwrap()),
        per(&|i| warp(i).iter().fold(0, |a, b| a ^ b)),
        per(&|_| count(&|x| x & 1 != 0)),
        per(&|_| u32::from(count(&|x| x == 7) > 0)),
        per(&|_| u32::from(count(&|x| x == 7) == 0)),
        per(&|i| if all_same(i) { u32::MAX } else { 0 }),
        per(&|i| u32::from(all_same(i))),
        per(&|i| sum(half(i)).wrapping_add(if lane(i) >= 16 { 16 } else { 0 })),
        per(&|i| get(i, lane(i) ^ 1)),
        per(&|i| ((f64::from(get(i, 5)) / 3.0).to_bits() >> 20) as u32),
    ]
}

#[test]
fn every_function_of_a_warp_is_what_the_manual_says() {
    for (width, by) in [(32, 0), (32, 5), (32, 31), (16, 3), (8, 8), (4, 1), (2, 1), (1, 0)] {
        let mut x = pseudo(THREADS, width as u64 * 100 + by as u64);
        // A warp of equal upper bits, for match_all.
        x[32..64].iter_mut().for_each(|x| *x = *x & 0xff | 0x1200);
        let expected = defined(&x, width, by);
        for seed in seeds() {
            let input = buffer(&x);
            let out = Memory::new(expected.len() * THREADS * 4);
            let args =
                [bytes(&[input.address(), out.address()]), bytes(&[width as i32, by as i32])];
            let options = cuda::Options { seed, ..cuda::Options::default() };
            let block = [THREADS as u32 / 3, 3, 1];
            cuda::launch("lanes", [1, 1, 1], block, 0, &args.concat(), options).unwrap();
            let got = words(&out);
            for (n, expected) in expected.iter().enumerate() {
                let got = &got[n * THREADS..][..THREADS];
                assert!(got == expected, "result {n}, width {width}, by {by}, seed {seed}");
            }
        }
    }
}
