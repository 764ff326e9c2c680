//! cuBLASLt: products of large matrices, by an algorithm that was measured.
//!
//! The first product of a shape tries what the library suggests, and the fastest stays: in memory, and on
//! disk for the next start. Shapes that differ in rows only share an algorithm as far as they lie between
//! the same powers of two. No algorithm splits the sum over k, so results are the same every time; between
//! different numbers of rows they need not be.
#![allow(unsafe_code, reason = "calls cuBLASLt")]

use std::{
    collections::HashMap,
    ffi::{c_int, c_void},
    fmt::Write,
    ptr,
    sync::{Mutex, PoisonError},
};

use photon_core::{Activation, DType};

use crate::{
    cache::Cache,
    driver::{Facts, Gemm, Memory},
    ffi::Timer,
    library::{self, functions},
    sys::Handle,
};

/// `cublasStatus_t`: zero is success.
type Status = c_int;
const NOT_SUPPORTED: Status = 15;
const COMPUTE_F32: c_int = 68;
const TRANSPOSED: c_int = 1;
const DESCRIPTION_TRANSPOSE_A: c_int = 3;
const DESCRIPTION_EPILOGUE: c_int = 7;
const DESCRIPTION_BIAS: c_int = 8;
const PREFERENCE_SCRATCH: c_int = 1;
const PREFERENCE_REDUCTIONS: c_int = 3;
/// Of A; B, C and D follow.
const PREFERENCE_ALIGNMENT: c_int = 5;
const EPILOGUE_NONE: c_int = 1;
const EPILOGUE_BIAS: c_int = 4;
/// The tanh form.
const EPILOGUE_GELU: c_int = 32;

/// What the library suggests at most, and how often each suggestion is timed after one run to warm up.
const SUGGESTIONS: usize = 8;
const RUNS: usize = 3;

/// `cublasLtMatmulAlgo_t`.
type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Suggestion {
    algorithm: Algorithm,
    scratch_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

functions! {
    /// cuBLASLt's functions, the same in CUDA 12 and 13.
    Functions {
        cublasLtCreate: fn(*mut Handle) -> Status,
        cublasLtDestroy: fn(Handle) -> Status,
        cublasLtGetVersion: fn() -> usize,
        cublasLtMatmulDescCreate: fn(*mut Handle, c_int, c_int) -> Status,
        cublasLtMatmulDescDestroy: fn(Handle) -> Status,
        cublasLtMatmulDescSetAttribute: fn(Handle, c_int, *const c_void, usize) -> Status,
        cublasLtMatrixLayoutCreate: fn(*mut Handle, c_int, u64, u64, i64) -> Status,
        cublasLtMatrixLayoutDestroy: fn(Handle) -> Status,
        cublasLtMatmulPreferenceCreate: fn(*mut Handle) -> Status,
        cublasLtMatmulPreferenceDestroy: fn(Handle) -> Status,
        cublasLtMatmulPreferenceSetAttribute: fn(Handle, c_int, *const c_void, usize) -> Status,
        cublasLtMatmulAlgoGetHeuristic: fn(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Suggestion, *mut c_int,
        ) -> Status,
        cublasLtMatmulAlgoCheck: fn(
            Handle, Handle, Handle, Handle, Handle, Handle, *const Algorithm, *mut Suggestion,
        ) -> Status,
        cublasLtMatmul: fn(
            Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void,
            *const c_void, Handle, *mut c_void, Handle, *const Algorithm, *mut c_void, usize, Handle,
        ) -> Status,
    }
}

/// What decides which algorithm is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    n: usize,
    k: usize,
    dtype: DType,
    out_dtype: DType,
    epilogue: c_int,
    accumulate: bool,
    alignment: [u32; 3],
}

impl Key {
    fn of(gemm: &Gemm) -> Self {
        let aligned = |address: u64, stride: usize, dtype: DType| {
            let places = (address | (stride * dtype.size()) as u64 | 256).trailing_zeros();
            1u32 << places
        };
        Key {
            rows: gemm.rows.next_power_of_two(),
            n: gemm.n,
            k: gemm.k,
            dtype: gemm.dtype,
            out_dtype: gemm.out_dtype,
            epilogue: epilogue(gemm),
            accumulate: gemm.accumulate,
            alignment: [
                aligned(gemm.w, gemm.k, gemm.dtype),
                aligned(gemm.x, gemm.x_stride, gemm.dtype),
                aligned(gemm.out, gemm.out_stride, gemm.out_dtype),
            ],
        }
    }

    /// As a word of a line on disk.
    fn name(&self) -> String {
        let Key { rows, n, k, dtype, out_dtype, epilogue, accumulate, alignment: [a, b, d] } = self;
        format!("{rows}x{n}x{k}:{dtype}:{out_dtype}:{epilogue}:{accumulate}:{a}:{b}:{d}")
    }
}

fn epilogue(gemm: &Gemm) -> c_int {
    let gelu = if gemm.activation == Activation::GeluTanh { EPILOGUE_GELU } else { 0 };
    let bias = if gemm.bias.is_some() { EPILOGUE_BIAS } else { 0 };
    (gelu | bias).max(EPILOGUE_NONE)
}

/// Whether the library computes this as the operation is defined.
fn is_legal(gemm: &Gemm) -> bool {
    let types = matches!(gemm.dtype, DType::F16 | DType::Bf16)
        && (gemm.out_dtype == gemm.dtype || gemm.out_dtype == DType::F32);
    let after = match gemm.activation {
        Activation::None => true,
        // The library would apply it to what `out` held, too.
        Activation::GeluTanh => !gemm.accumulate,
        Activation::GeluErf => false,
    };
    types && after && Key::of(gemm).alignment.iter().all(|&alignment| alignment >= 16)
}

/// `cudaDataType_t`.
fn type_code(dtype: DType) -> c_int {
    match dtype {
        DType::F16 => 2,
        DType::Bf16 => 14,
        _ => 0,
    }
}

/// The library, and what was measured.
pub(crate) struct Blas {
    functions: Functions,
    handle: Handle,
    version: usize,
    algorithms: Mutex<HashMap<String, Algorithm>>,
    cache: Cache,
    file: String,
}

impl Blas {
    /// Scratch memory of a product.
    pub(crate) const SCRATCH_BYTES: usize = 32 << 20;

    /// Opens the library of the driver's version of CUDA, or an older one, on the thread's context.
    pub(crate) fn open(facts: &Facts) -> Result<Self, String> {
        let majors: Vec<u32> = (12..=(facts.driver_version / 1000).min(13)).rev().collect();
        let functions = Functions::load(library::open(&library::names("cublasLt", &majors))?)?;
        let mut handle = ptr::null_mut();
        // SAFETY: the thread has a context, and `handle` is there to be written to.
        check(unsafe { (functions.cublasLtCreate)(&raw mut handle) }, "opening cuBLASLt")?;
        // SAFETY: no preconditions.
        let version = unsafe { (functions.cublasLtGetVersion)() };
        let gpu: String =
            facts.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let (cache, file) = (Cache::from_env(), format!("cublaslt-{version}-{gpu}.txt"));
        let kept = cache.get(&file).and_then(|bytes| String::from_utf8(bytes).ok());
        let algorithms = Mutex::new(parse(&kept.unwrap_or_default()));
        Ok(Blas { functions, handle, version, algorithms, cache, file })
    }

    pub(crate) fn name(&self) -> String {
        let measured = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner).len();
        format!("cuBLASLt {} ({measured} shapes measured)", self.version)
    }

    /// Gives the library's resources back. Called once, when nothing multiplies any more.
    pub(crate) fn close(&self) {
        // SAFETY: created by `open`; by the caller's word nothing uses it any more.
        let _ = unsafe { (self.functions.cublasLtDestroy)(self.handle) };
    }

    /// Multiplies; `false` if the library cannot. What is not known is measured if there is a timer.
    ///
    /// # Safety
    /// Every address is of memory as large as `gemm` says; `scratch` is of [`Self::SCRATCH_BYTES`] that
    /// nothing else on the stream uses at the same time. They live until the work has run.
    pub(crate) unsafe fn multiply(
        &self,
        gemm: &Gemm,
        stream: Handle,
        scratch: u64,
        timer: Option<&Timer<'_>>,
    ) -> Result<bool, String> {
        if !is_legal(gemm) {
            return Ok(false);
        }
        let product = Product::describe(&self.functions, gemm)?;
        let key = Key::of(gemm).name();
        let known =
            self.algorithms.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(algorithm) = known.filter(|algorithm| product.allows(self.handle, algorithm)) {
            // SAFETY: the caller's.
            unsafe { product.run(self.handle, &algorithm, gemm.out, stream, scratch)? };
            return Ok(true);
        }
        let suggestions = product.suggestions(self.handle)?;
        let Some(first) = suggestions.first() else { return Ok(false) };
        let mut best = (f32::INFINITY, first.algorithm);
        if let (Some(timer), true) = (timer, known.is_none()) {
            // Measuring must not add to the result once more.
            let bytes = gemm.rows * gemm.out_stride * gemm.out_dtype.size();
            let other = if gemm.accumulate { Some(timer.scratch(bytes)?) } else { None };
            let out = other.as_ref().map_or(gemm.out, Memory::address);
            for Suggestion { algorithm, .. } in &suggestions {
                let run = || {
                    // SAFETY: the caller's; `out` is as large as what it stands for.
                    unsafe { product.run(self.handle, algorithm, out, stream, scratch) }
                };
                run()?;
                let seconds = timer.seconds(|| (0..RUNS).try_for_each(|_| run()))?;
                if seconds < best.0 {
                    best = (seconds, *algorithm);
                }
            }
            self.keep(key, best.1);
        }
        // SAFETY: the caller's.
        unsafe { product.run(self.handle, &best.1, gemm.out, stream, scratch)? };
        Ok(true)
    }

    fn keep(&self, key: String, algorithm: Algorithm) {
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        algorithms.insert(key, algorithm);
        self.cache.put(&self.file, write(&algorithms).as_bytes());
    }
}

fn check(status: Status, doing: &str) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("{doing}: cuBLASLt gives status {status}")) }
}

/// A line per shape: its name and eight numbers.
fn write(algorithms: &HashMap<String, Algorithm>) -> String {
    let mut text = String::new();
    for (key, algorithm) in algorithms {
        text += key;
        for word in algorithm {
            let _ = write!(text, " {word:016x}");
        }
        text.push('\n');
    }
    text
}

fn parse(text: &str) -> HashMap<String, Algorithm> {
    let line = |line: &str| {
        let (key, words) = line.split_once(' ')?;
        let words = words.split(' ').map(|word| u64::from_str_radix(word, 16).ok());
        let words: Vec<u64> = words.collect::<Option<_>>()?;
        Some((key.to_owned(), Algorithm::try_from(words).ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// A product as the library sees it, by columns: `D[n, rows] = W^T[n, k] X[k, rows]`.
struct Product<'a> {
    functions: &'a Functions,
    gemm: &'a Gemm,
    description: Described<'a>,
    w: Described<'a>,
    x: Described<'a>,
    out: Described<'a>,
}

/// A description of the library's, until it is dropped.
struct Described<'a> {
    raw: Handle,
    destroy: &'a unsafe extern "C" fn(Handle) -> Status,
}

impl Drop for Described<'_> {
    fn drop(&mut self) {
        // SAFETY: created by the library and destroyed only here.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

impl<'a> Product<'a> {
    fn describe(functions: &'a Functions, gemm: &'a Gemm) -> Result<Self, String> {
        let layout = |dtype, rows: usize, cols: usize, stride: usize| {
            let mut raw = ptr::null_mut();
            // SAFETY: `raw` is there to be written to.
            let status = unsafe {
                let create = functions.cublasLtMatrixLayoutCreate;
                create(&raw mut raw, type_code(dtype), rows as u64, cols as u64, stride as i64)
            };
            check(status, "describing a matrix")?;
            Ok::<_, String>(Described { raw, destroy: &functions.cublasLtMatrixLayoutDestroy })
        };
        let mut raw = ptr::null_mut();
        let f32_code = type_code(DType::F32);
        // SAFETY: `raw` is there to be written to.
        let status =
            unsafe { (functions.cublasLtMatmulDescCreate)(&raw mut raw, COMPUTE_F32, f32_code) };
        check(status, "describing a product")?;
        let description = Described { raw, destroy: &functions.cublasLtMatmulDescDestroy };
        let product = Product {
            functions,
            gemm,
            description,
            w: layout(gemm.dtype, gemm.k, gemm.n, gemm.k)?,
            x: layout(gemm.dtype, gemm.k, gemm.rows, gemm.x_stride)?,
            out: layout(gemm.out_dtype, gemm.n, gemm.rows, gemm.out_stride)?,
        };
        product.set(DESCRIPTION_TRANSPOSE_A, &TRANSPOSED)?;
        product.set(DESCRIPTION_EPILOGUE, &epilogue(gemm))?;
        if let Some(bias) = &gemm.bias {
            product.set(DESCRIPTION_BIAS, bias)?;
        }
        Ok(product)
    }

    fn set<T>(&self, attribute: c_int, value: &T) -> Result<(), String> {
        let value = ptr::from_ref(value).cast();
        // SAFETY: the description lives, and the value is as long as said.
        let status = unsafe {
            let set = self.functions.cublasLtMatmulDescSetAttribute;
            set(self.description.raw, attribute, value, size_of::<T>())
        };
        check(status, "describing a product")
    }

    fn suggestions(&self, handle: Handle) -> Result<Vec<Suggestion>, String> {
        let functions = self.functions;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is there to be written to.
        let status = unsafe { (functions.cublasLtMatmulPreferenceCreate)(&raw mut raw) };
        check(status, "asking for algorithms")?;
        let preference = Described { raw, destroy: &functions.cublasLtMatmulPreferenceDestroy };
        let prefer = |attribute: c_int, bytes: &[u8]| {
            // SAFETY: the preference lives, and the value is as long as said.
            let status = unsafe {
                let set = functions.cublasLtMatmulPreferenceSetAttribute;
                set(preference.raw, attribute, bytes.as_ptr().cast(), bytes.len())
            };
            check(status, "asking for algorithms")
        };
        prefer(PREFERENCE_SCRATCH, &(Blas::SCRATCH_BYTES as u64).to_ne_bytes())?;
        prefer(PREFERENCE_REDUCTIONS, &0u32.to_ne_bytes())?;
        let [w, x, out] = Key::of(self.gemm).alignment;
        for (i, alignment) in (0..).zip([w, x, out, out]) {
            prefer(PREFERENCE_ALIGNMENT + i, &alignment.to_ne_bytes())?;
        }
        let mut list = [Suggestion::default(); SUGGESTIONS];
        let mut count = 0;
        // SAFETY: every handle lives; the list is as long as said.
        let status = unsafe {
            (functions.cublasLtMatmulAlgoGetHeuristic)(
                handle,
                self.description.raw,
                self.w.raw,
                self.x.raw,
                self.out.raw,
                self.out.raw,
                preference.raw,
                SUGGESTIONS as c_int,
                list.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status != NOT_SUPPORTED {
            check(status, "asking for algorithms")?;
        }
        let found = list.into_iter().take(count.unsigned_abs() as usize);
        Ok(found.filter(|suggestion| suggestion.state == 0).collect())
    }

    fn allows(&self, handle: Handle, algorithm: &Algorithm) -> bool {
        let mut result = Suggestion::default();
        // SAFETY: every handle lives, and `result` is there to be written to.
        let status = unsafe {
            (self.functions.cublasLtMatmulAlgoCheck)(
                handle,
                self.description.raw,
                self.w.raw,
                self.x.raw,
                self.out.raw,
                self.out.raw,
                algorithm,
                &raw mut result,
            )
        };
        status == 0 && result.scratch_bytes <= Blas::SCRATCH_BYTES
    }

    /// # Safety
    /// As for [`Blas::multiply`], for `out` instead of the result's own address.
    unsafe fn run(
        &self,
        handle: Handle,
        algorithm: &Algorithm,
        out: u64,
        stream: Handle,
        scratch: u64,
    ) -> Result<(), String> {
        let gemm = self.gemm;
        let (alpha, beta) = (1.0f32, if gemm.accumulate { 1.0f32 } else { 0.0 });
        // SAFETY: every handle lives; the factors are f32, as the description says; the caller vouches for
        // the addresses.
        let status = unsafe {
            (self.functions.cublasLtMatmul)(
                handle,
                self.description.raw,
                (&raw const alpha).cast(),
                gemm.w as *const c_void,
                self.w.raw,
                gemm.x as *const c_void,
                self.x.raw,
                (&raw const beta).cast(),
                gemm.out as *const c_void,
                self.out.raw,
                out as *mut c_void,
                self.out.raw,
                algorithm,
                scratch as *mut c_void,
                Blas::SCRATCH_BYTES,
                stream,
            )
        };
        check(status, "multiplying")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gemm() -> Gemm {
        Gemm {
            rows: 729,
            n: 1152,
            k: 4304,
            dtype: DType::Bf16,
            x: 0x1000,
            x_stride: 4304,
            w: 0x2000,
            out: 0x3000,
            out_stride: 1152,
            out_dtype: DType::Bf16,
            bias: Some(0x4000),
            activation: Activation::None,
            accumulate: true,
        }
    }

    #[test]
    fn only_what_the_library_computes_as_defined_is_given_to_it() {
        assert!(is_legal(&gemm()));
        assert!(!is_legal(&Gemm { activation: Activation::GeluTanh, ..gemm() }));
        let gelu = Gemm { activation: Activation::GeluTanh, accumulate: false, ..gemm() };
        assert!(is_legal(&gelu));
        assert_eq!(epilogue(&gelu), 36);
        assert!(!is_legal(&Gemm { activation: Activation::GeluErf, ..gelu }));
        assert!(!is_legal(&Gemm { dtype: DType::F32, ..gemm() }));
        assert!(!is_legal(&Gemm { out_dtype: DType::F16, ..gemm() }));
        assert!(!is_legal(&Gemm { x: 0x1002, ..gemm() }), "not aligned");
        assert!(!is_legal(&Gemm { out_stride: 1153, ..gemm() }), "not aligned from row to row");
    }

    #[test]
    fn what_was_measured_is_read_as_it_was_written() {
        let key = Key::of(&gemm()).name();
        assert_eq!(key, "1024x1152x4304:bf16:bf16:4:true:32:32:256");
        let measured = HashMap::from([(key, [1, 2, 3, 4, 5, 6, 7, u64::MAX])]);
        assert_eq!(parse(&write(&measured)), measured);
        assert!(parse("half a line 12\n\nkey 1 2 3\n").is_empty());
    }
}
