//! What kernels do wrong is said, with kernel, block, thread and line, and harms nobody else.
use photon_simt::{Memory, cuda};

use crate::support::{bytes, launch, seeds, words};

/// The fault of case `what` of `kernels/faulty.cu`, on a buffer of 1000 bytes.
fn fault(what: i32, at: i32, seed: u64) -> String {
    let data = Memory::new(1000);
    let args: (&[u64], &[i32]) = (&[data.address()], &[what, at]);
    launch("faulty", [2, 1, 1], 128, 0, args, seed).expect_err("a fault").to_string()
}

fn check(what: i32, at: i32, expected: &[&str]) {
    for seed in seeds() {
        let fault = fault(what, at, seed);
        assert!(fault.starts_with("kernel faulty"), "{fault}");
        for part in expected {
            assert!(fault.contains(part), "seed {seed}: no `{part}` in:\n{fault}");
        }
    }
}

/// Where `text` stands in the kernels' source.
fn line(text: &str) -> String {
    let source = include_str!("../../kernels/faulty.cu");
    let found: Vec<usize> =
        (1..).zip(source.lines()).filter(|(_, l)| l.contains(text)).map(|(n, _)| n).collect();
    assert_eq!(found.len(), 1, "{text}");
    format!("photon-simt/kernels/faulty.cu:{}", found[0])
}

#[test]
fn nothing_is_wrong_with_case_0() {
    let data = Memory::new(1000);
    launch("faulty", [2, 1, 1], 128, 0, (&[data.address()], &[0, 0]), 0).unwrap();
}

#[test]
fn a_kernel_that_may_start_early_waits_for_the_one_before_it() {
    let data = Memory::new(1000);
    let args = [bytes(&[data.address()]), bytes(&[0, 0])].concat();
    let options = cuda::Options { starts_early: true, ..cuda::Options::default() };
    let fault = cuda::launch("faulty", [2, 1, 1], [128, 1, 1], 0, &args, options).unwrap_err();
    assert!(fault.to_string().contains("returned without `grid_wait`"), "{fault}");
}

#[test]
fn accesses_outside_of_buffers_are_named_with_thread_and_line() {
    let wrote = line("if (i == 5) a.data[a.at] = 1;");
    check(
        1,
        252,
        &["thread (5, 0, 0): wrote to 8 bytes past the end of a buffer of 1000 bytes", &wrote],
    );
    let read = line("if (i == 5) shared[0] = a.data[a.at];");
    check(
        2,
        500,
        &["thread (5, 0, 0): read 1000 bytes past the end of a buffer of 1000 bytes", &read],
    );
    // Between the buffer's end and its page's; and before its beginning.
    check(1, 250, &["wrote to byte 1000 of a buffer of 1000 bytes"]);
    check(1, -1, &["wrote to byte -4 of a buffer of 1000 bytes"]);
}

#[test]
fn accesses_outside_of_shared_arrays_are_named() {
    let place = line("if (i == 7) shared[a.at] = 1;");
    check(3, 64, &["thread (7, 0, 0): wrote to 0 bytes past the end of shared `shared`", &place]);
    let data = Memory::new(1000);
    let past = launch("faulty", [1, 1, 1], 1, 256, (&[data.address()], &[16, 64]), 0).unwrap_err();
    assert!(
        past.message.contains("0 bytes past the end of shared `dynamic shared memory`"),
        "{past}"
    );
    launch("faulty", [1, 1, 1], 1, 256, (&[data.address()], &[16, 63]), 0).unwrap();
    let none = launch("faulty", [1, 1, 1], 1, 0, (&[data.address()], &[16, 0]), 0).unwrap_err();
    assert!(none.message.starts_with("dynamic shared memory is used and the launch gives none"));
}

#[test]
fn barriers_that_not_all_reach_are_deadlocks_with_who_waits_where() {
    let (all, some) = (line("if (i < 32) __syncthreads();"), line("else bar_sync(1, 128);"));
    let waits = [
        format!("threads 0-31 wait at __syncthreads ({all})"),
        format!("threads 32-127 wait at bar.sync ({some})"),
    ];
    check(4, 0, &["deadlock: nobody can go on", &waits[0], &waits[1]]);
}

#[test]
fn threads_at_different_barriers_are_told_apart() {
    check(
        5,
        0,
        &["threads of one block came to different barriers", &line("if (i < 64) __syncthreads();")],
    );
}

#[test]
fn lanes_that_diverge_are_told() {
    check(
        6,
        0,
        &[
            "lanes of one warp came to different places at once",
            "__shfl_xor_sync",
            "__reduce_add_sync",
        ],
    );
    check(
        7,
        0,
        &["a lane that is not in its own mask 0000ffff", &line("__shfl_sync(0xffff, i, 0);")],
    );
    check(
        8,
        0,
        &["lanes 0000ffff of the warp have returned", &line("mma_m16n8k16_bf16(d, x, y);")],
    );
}

#[test]
fn misaligned_addresses_are_told() {
    check(9, 1, &["are not both multiples of 16 at cp.async", &line("cp_async_16(shared")]);
    check(10, 2, &["of a row is not a multiple of 16 at ldmatrix", &line("ldmatrix_x1(r, shared")]);
    check(18, 0, &["not a copy from global memory to shared memory at cp.async"]);
}

#[test]
fn endless_polls_divisions_and_stacks_end_the_launch_only() {
    let data = Memory::zeroed(1000);
    data.write(0, &77_u32.to_ne_bytes());
    let endless =
        launch("faulty", [1, 1, 1], 128, 0, (&[data.address()], &[11, 0]), 0).unwrap_err();
    assert!(
        endless.message.contains("waits for something that no running thread will do"),
        "{endless}"
    );
    if cfg!(target_arch = "x86_64") {
        check(12, 0, &["division by zero", &line("a.data[i] = 7 / a.at;")]);
    }
    check(13, 0, &["a thread's stack of 64 KiB overflows"]);
    check(14, 0, &["the kernel gave up at __trap", &line("__trap();")]);
    check(15, 0, &["49408 bytes of `__shared__` arrays, of which there may be 49152"]);
}

#[test]
fn unwritten_shared_memory_is_poison_by_the_seed() {
    let read = |seed| {
        let data = Memory::zeroed(1000);
        launch("faulty", [2, 1, 1], 64, 0, (&[data.address()], &[17, 0]), seed).unwrap();
        words(&data)[0]
    };
    assert_eq!([read(0), read(1)], [0xffff_ffff, 0x7f7f_7f7f]);
}

#[test]
fn launches_that_no_device_would_take_are_refused() {
    let args = [bytes(&[0_u64]), bytes(&[0_i32, 0])].concat();
    let options = cuda::Options::default();
    let refused = |name: &str, grid, block, shared, args: &[u8]| {
        cuda::launch(name, grid, block, shared, args, options).unwrap_err().to_string()
    };
    let one = [1, 1, 1];
    assert_eq!(refused("nobody", one, one, 0, &args), "kernel nobody: there is no such kernel");
    assert_eq!(
        refused("faulty", one, one, 0, &args[1..]),
        "kernel faulty: 15 bytes of arguments, not 16"
    );
    assert!(refused("faulty", one, [129, 1, 1], 0, &args).contains("of which 128 are allowed"));
    assert!(refused("faulty", [0, 1, 1], one, 0, &args).contains("empty"));
    assert!(
        refused("faulty", [1, 65536, 1], one, 0, &args).contains("beyond 2^31 - 1, 65535, 65535")
    );
    assert!(
        refused("faulty", one, one, 228 << 10, &args).contains("where a block can have 232448")
    );
}

#[test]
fn blocks_wait_for_each_other_in_cooperative_launches_only() {
    let run = |cooperative, seed| {
        let (data, out) = (Memory::zeroed(6 * 4), Memory::new(5 * 4));
        let args = bytes(&[data.address(), out.address()]);
        let options = cuda::Options { seed, cooperative, threads: 1, ..cuda::Options::default() };
        cuda::launch("rendezvous", [5, 1, 1], [64, 1, 1], 0, &args, options)?;
        Ok::<_, photon_simt::Fault>(words(&out))
    };
    for seed in seeds() {
        assert_eq!(run(true, seed).unwrap(), [35; 5], "seed {seed}");
    }
    let stuck = run(false, 0).unwrap_err();
    assert!(stuck.message.contains("waits for something"), "{stuck}");
}
