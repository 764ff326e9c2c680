//! Arguments as bytes, buffers, and numbers that look random.
use photon_simt::{Fault, Memory, cuda};

/// What every test runs under: both extremes and some drawn orders.
pub(crate) fn seeds() -> impl Iterator<Item = u64> {
    0..8
}

pub(crate) trait Plain: Copy {
    fn put(self, out: &mut Vec<u8>);
}
macro_rules! plain {
    ($($t:ty)*) => {$(
        impl Plain for $t {
            fn put(self, out: &mut Vec<u8>) {
                out.extend(self.to_ne_bytes());
            }
        }
    )*};
}
plain!(u8 i8 u16 u32 i32 u64 f32 f64);

pub(crate) fn bytes<T: Plain>(values: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    values.iter().for_each(|v| v.put(&mut out));
    out
}

pub(crate) fn buffer<T: Plain>(values: &[T]) -> Memory {
    let bytes = bytes(values);
    let memory = Memory::new(bytes.len());
    memory.write(0, &bytes);
    memory
}

pub(crate) fn words(memory: &Memory) -> Vec<u32> {
    let bytes = memory.to_vec();
    bytes.chunks_exact(4).map(|w| u32::from_ne_bytes(w.try_into().unwrap())).collect()
}

pub(crate) fn floats(memory: &Memory) -> Vec<f32> {
    words(memory).into_iter().map(f32::from_bits).collect()
}

/// The same for the same seed.
pub(crate) fn pseudo(n: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u32
    };
    (0..n).map(|_| next()).collect()
}

/// Small multiples of 1/8, which every type has exactly.
pub(crate) fn eighths(n: usize, seed: u64) -> Vec<f32> {
    pseudo(n, seed).into_iter().map(|x| (x % 65) as f32 / 8.0 - 4.0).collect()
}

/// Launches with addresses first and 32-bit numbers after them.
pub(crate) fn launch(
    name: &str,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    args: (&[u64], &[i32]),
    seed: u64,
) -> Result<cuda::Report, Fault> {
    let args = [bytes(args.0), bytes(args.1)].concat();
    let options = cuda::Options { seed, ..cuda::Options::default() };
    cuda::launch(name, grid, [block, 1, 1], shared, &args, options)
}
