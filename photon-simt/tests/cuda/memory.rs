//! Tables, and atomics from all blocks at once.
use photon_simt::{Memory, cuda};

use crate::support::{floats, launch, seeds, words};

#[test]
fn tables_say_what_the_compiler_knows() {
    let kernel = cuda::kernel("copies").unwrap();
    assert_eq!((kernel.args_size, kernel.launch_bounds), (24, Some(64)));
    assert_eq!(kernel.file, "photon-simt/kernels/matrices.cu");
    let fields: Vec<_> = kernel.fields.iter().map(|f| (f.name, f.kind, f.offset, f.size)).collect();
    let expected = [
        ("in", "const uint32_t*", 0, 8),
        ("out", "uint32_t*", 8, 8),
        ("valid", "int32_t", 16, 4),
        ("pad", "int32_t", 20, 4),
    ];
    assert_eq!(fields, expected);
}

#[test]
fn static_shared_memory_is_known_after_a_launch() {
    let (input, out) = (Memory::zeroed(2048), Memory::zeroed(2048));
    let args: (&[u64], &[i32]) = (&[input.address(), out.address()], &[0, 0]);
    launch("copies", [1, 1, 1], 64, 0, args, 0).unwrap();
    assert_eq!(cuda::kernel("copies").unwrap().static_shared(), Some(3 * 64 * 16));
}

#[test]
fn atomics_lose_nothing() {
    for seed in seeds() {
        let out = Memory::zeroed(8 * 4);
        out.write(8, &u32::MAX.to_ne_bytes());
        let args: (&[u64], &[i32]) = (&[out.address()], &[]);
        launch("atomics", [64, 1, 1], 96, 0, args, seed).unwrap();
        let (got, as_float) = (words(&out), floats(&out));
        let n = 64 * 96;
        assert_eq!(got[0], n * (n - 1) / 2, "seed {seed}");
        assert_eq!(got[1..5], [n - 1, 0, n % 8, n], "seed {seed}");
        assert_eq!(as_float[5], n as f32 / 2.0, "seed {seed}");
    }
}
